import random
import re
import timeit
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.requests.attribute_requests import FAMILIES, AttributeRequest, RequestGenerator, phrase
from cramer_peft.recsys.requests.matching import match_scores, satisfies
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES

GENRES = ("Action", "Children's", "Comedy", "Film-Noir", "Sci-Fi")
COUNTS = {
    "for": (1, 0),
    "against": (0, 1),
    "for_pair": (2, 0),
    "against_pair": (0, 2),
    "mixed": (1, 1),
    "none": (0, 0),
}
seeds = st.integers(0, 2**32)
vocabularies = st.lists(st.text("abcdefgh-", min_size=1).filter(lambda name: name.strip("-")), min_size=1, unique=True)


def generator(attributes: Sequence[str] = GENRES) -> RequestGenerator:
    return RequestGenerator(attributes, TRAIN_TEMPLATES)


def request(wanted: Sequence[str] = (), unwanted: Sequence[str] = ()) -> AttributeRequest:
    return AttributeRequest("text", tuple(wanted), tuple(unwanted), "mixed")


def check_shape(made: AttributeRequest) -> None:
    """A request names as many attributes as its family, and its text names just these."""
    assert (len(made.wanted), len(made.unwanted)) == COUNTS[made.family]
    assert not set(made.wanted) & set(made.unwanted)
    assert "{" not in made.text
    for attribute in (*made.wanted, *made.unwanted):
        assert phrase(attribute) in made.text


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("Sci-Fi", "sci-fi"),
        ("Children's", "children's"),
        ("Film-Noir", "film noir"),
        ("IMAX", "imax"),
        ("Co-op", "co-op"),
        ("First-Person-Shooter", "first person shooter"),
        ("Free to Play", "free to play"),
        ("Design &amp; Illustration", "design & illustration"),
        ("slow_cinema", "slow cinema"),
    ],
)
def test_phrase(attribute: str, expected: str) -> None:
    assert phrase(attribute) == expected


@given(st.text("abcdefé_1-– ", max_size=40))
def test_only_hyphens_between_long_parts_become_spaces(text: str) -> None:
    parts = text.replace("_", " ").split("-")
    expected = parts[0]
    for left, right in pairwise(parts):
        long = re.search(r"\w{4}$", left) and re.match(r"\w{4}", right)
        expected += (" " if long else "-") + right
    if expected.strip():
        assert phrase(text) == " ".join(expected.split())


@pytest.mark.parametrize("part", ["x", "word-", "-", "abc-", "&amp", "_", "é"])
def test_the_time_of_a_phrase_grows_with_its_length_alone(part: str) -> None:
    def seconds(length: int) -> float:
        text = "y" + part * (length // len(part))
        return min(timeit.repeat(lambda: phrase(text), number=1, repeat=3))

    assert seconds(60_000) < 40 * max(seconds(6_000), 1e-4)  # squares would need 100 times as long


def test_phrase_of_nothing() -> None:
    with pytest.raises(DataError, match="blank"):
        phrase(" _ ")


@given(vocabularies, seeds, st.data())
def test_truthful_requests_are_true(vocabulary: list[str], seed: int, data: st.DataObject) -> None:
    attributes = data.draw(st.sets(st.sampled_from(vocabulary)))
    made = generator(vocabulary).truthful(attributes, random.Random(seed))
    check_shape(made)
    assert made.family != "none"
    assert set(made.wanted) <= attributes
    assert not set(made.unwanted) & attributes
    row = torch.tensor([[name in attributes for name in vocabulary]])
    assert satisfies([made], vocabulary, row).all()
    assert match_scores([made], vocabulary, row) == (1.0 if made.wanted else 0.0)


def test_truthful_reaches_every_family_and_needs_no_attributes() -> None:
    rng = random.Random(1)
    made = [generator().truthful({"Comedy", "Sci-Fi"}, rng) for _ in range(300)]
    assert {one.family for one in made} == set(FAMILIES) - {"none"}
    bare = [generator().truthful((), rng) for _ in range(50)]
    assert {one.family for one in bare} == {"against"}
    full = [generator().truthful(GENRES, rng) for _ in range(50)]
    assert {one.family for one in full} == {"for", "for_pair"}


@given(seeds)
def test_the_same_state_gives_the_same_request(seed: int) -> None:
    first, second = ["Sci-Fi", "Comedy", "Action"], {"Action", "Comedy", "Sci-Fi"}
    made = [generator().truthful(given, random.Random(seed)) for given in (first, second)]
    assert made[0] == made[1]


@given(vocabularies, seeds)
def test_counterfactual(vocabulary: list[str], seed: int) -> None:
    made = generator(vocabulary).counterfactual(random.Random(seed))
    check_shape(made)
    assert made.family != "none"
    assert {*made.wanted, *made.unwanted} <= set(vocabulary)


def test_what_is_asked_against_can_have_weights() -> None:
    vocabulary, rng = ("Drama", "Comedy", "Horror"), random.Random(0)
    made = RequestGenerator(vocabulary, TRAIN_TEMPLATES, [6.0, 3.0, 1.0])
    drawn = [made.counterfactual(rng) for _ in range(6000)]
    for request in drawn:
        check_shape(request)
    one = [request.unwanted[0] for request in drawn if request.family == "against"]
    for name, share in zip(vocabulary, (0.6, 0.3, 0.1), strict=True):
        assert one.count(name) / len(one) == pytest.approx(share, abs=0.05)
    wanted = [request.wanted[0] for request in drawn if request.family == "for"]
    assert wanted.count("Horror") / len(wanted) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
def test_weights_that_do_not_fit(weights: list[float]) -> None:
    with pytest.raises(DataError, match=r"against_weights: found .* for 3 attributes"):
        RequestGenerator(("Drama", "Comedy", "Horror"), TRAIN_TEMPLATES, weights)


def test_counterfactual_errors() -> None:
    with pytest.raises(DataError, match="family: found 'both'"):
        generator().counterfactual(random.Random(0), "both")
    with pytest.raises(DataError, match="names 2 attributes, but the vocabulary has 1"):
        generator(("Drama",)).counterfactual(random.Random(0), "mixed")


def test_empty_and_single_attribute_requests() -> None:
    rng = random.Random(0)
    nothing = generator().empty(rng)
    assert nothing.text in TRAIN_TEMPLATES["none"]
    assert (nothing.wanted, nothing.unwanted, nothing.family) == ((), (), "none")
    liked = generator().for_attribute("Film-Noir", rng)
    assert (liked.wanted, liked.unwanted, liked.family) == (("Film-Noir",), (), "for")
    assert "film noir" in liked.text
    disliked = generator().against_attribute("Sci-Fi", rng)
    assert (disliked.wanted, disliked.unwanted, disliked.family) == ((), ("Sci-Fi",), "against")
    assert "sci-fi" in disliked.text


def test_unknown_attributes_list_near_misses() -> None:
    rng = random.Random(0)
    message = "no attribute 'comedi'. Nearest: 'Comedy'"
    with pytest.raises(DataError, match=message):
        generator().for_attribute("comedi", rng)
    with pytest.raises(DataError, match=message):
        generator().against_attribute("comedi", rng)
    with pytest.raises(DataError, match=message):
        generator().truthful(["Action", "comedi"], rng)
    for function in (match_scores, satisfies):
        with pytest.raises(DataError, match=message):
            function([request(unwanted=["comedi"])], GENRES, torch.zeros(1, 5, dtype=torch.bool))


def test_braces_in_an_attribute_are_text() -> None:
    made = generator(("a {wanted} b",)).for_attribute("a {wanted} b", random.Random(0))
    assert "a {wanted} b" in made.text


@pytest.mark.parametrize(
    ("attributes", "message"),
    [((), "empty"), (("a", "b", "a"), r"\['a'\] more than once"), (("a", " "), "blank")],
)
def test_bad_vocabulary(attributes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generator(attributes)


@pytest.mark.parametrize(
    ("family", "templates", "message"),
    [
        ("other", ("x",), "found the families"),
        ("for", (), "one or more templates"),
        ("for", "{wanted}", "one or more templates"),
        ("for", ("no field",), "'no field'"),
        ("for", ("{unwanted}",), r"each of \['wanted'\]"),
        ("for", ("{wanted} {wanted}",), "once"),
        ("for", ("{wanted!r}",), "conversion"),
        ("for", ("{wanted:>9}",), "format"),
        ("for", ("{wanted",), "expected"),
        ("for", ("{wanted.upper}",), "expected"),
        ("none", ("{wanted}",), "expected"),
        ("mixed", ("{wanted}",), r"\['unwanted', 'wanted'\]"),
    ],
)
def test_bad_templates(family: str, templates: Sequence[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RequestGenerator(GENRES, {**TRAIN_TEMPLATES, family: templates})


def test_a_missing_family() -> None:
    with pytest.raises(DataError, match="found the families"):
        RequestGenerator(GENRES, {"for": ("{wanted}",)})
