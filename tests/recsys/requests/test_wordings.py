"""The wordings: clean, fitting their families, and disjoint between training and test."""

import hashlib
import json
import random
import re
import string

import pytest
from teaching.sentences import template_pieces, wording

from cramer_peft.recsys.requests.attribute_requests import FAMILIES, AttributeRequest, RequestGenerator, phrase
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

SETS = {"train": TRAIN_TEMPLATES, "test": TEST_TEMPLATES}
FIELDS = {
    "for": {"wanted"},
    "against": {"unwanted"},
    "for_pair": {"wanted", "wanted2"},
    "against_pair": {"unwanted", "unwanted2"},
    "mixed": {"wanted", "unwanted"},
    "none": set(),
}
GENRES = ("Action", "Children's", "Comedy", "Film-Noir", "Sci-Fi")
TRAIN_MINIMUM = {"for": 30, "against": 30, "for_pair": 15, "against_pair": 15, "mixed": 20}
TEST_MINIMUM = {"for": 10, "against": 10, "for_pair": 6, "against_pair": 6, "mixed": 8}
COUNTS = {
    "for": (1, 0),
    "against": (0, 1),
    "for_pair": (2, 0),
    "against_pair": (0, 2),
    "mixed": (1, 1),
    "none": (0, 0),
}
# of all templates, in their order, so that a change of one is never an accident
DIGESTS = {
    "train": "54d17a17656efecc23f59cb30da18e817770ad93c27e40c8f7dbad4594d031a1",
    "test": "9d7a2e06751eac3b4b69e5608ebecbad535478eb9332d012e048a0271ff5e9a7",
}


def bare(template: str) -> str:
    """Without case, punctuation and spaces."""
    return re.sub(r"[^a-z{}]", "", template.lower())


@pytest.mark.parametrize("name", SETS)
def test_no_template_has_changed(name: str) -> None:
    stated = json.dumps({family: list(templates) for family, templates in SETS[name].items()})
    assert hashlib.sha256(stated.encode()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", SETS)
def test_each_wording_has_the_fields_of_its_family_once(name: str) -> None:
    assert tuple(SETS[name]) == FAMILIES
    for family, templates in SETS[name].items():
        for template in templates:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
            assert sorted(fields) == sorted(FIELDS[family]), template


@pytest.mark.parametrize("name", SETS)
def test_wordings_are_clean_text(name: str) -> None:
    for templates in SETS[name].values():
        for template in templates:
            assert template == " ".join(template.split()), template
            assert 2 < len(template) < 160
            assert template.isascii(), template


def test_no_test_wording_is_a_training_wording_of_any_family() -> None:
    trained = {bare(template) for templates in TRAIN_TEMPLATES.values() for template in templates}
    tested = [bare(template) for templates in TEST_TEMPLATES.values() for template in templates]
    assert len(set(tested)) == len(tested)
    assert not trained & set(tested)


def test_no_training_wording_holds_one_of_the_test() -> None:
    tested = [wording(template_pieces(template)) for templates in TEST_TEMPLATES.values() for template in templates]
    for templates in TRAIN_TEMPLATES.values():
        for template in templates:
            said = f" {wording(template_pieces(template))} "
            # Counted, not shown: whoever works on the method does not look at the wordings of the test.
            assert sum(f" {one} " in said for one in tested) == 0


def test_no_wording_names_what_only_one_catalogue_has() -> None:
    for templates in (*TRAIN_TEMPLATES.values(), *TEST_TEMPLATES.values()):
        for template in templates:
            assert not re.search(r"\b(movies?|films?|books?|games?|songs?|watch|read|listen)\b", template.lower()), (
                template
            )


def check_shape(made: AttributeRequest) -> None:
    """A request names as many attributes as its family, and its text names just these."""
    assert (len(made.wanted), len(made.unwanted)) == COUNTS[made.family]
    assert not set(made.wanted) & set(made.unwanted)
    assert "{" not in made.text
    for attribute in (*made.wanted, *made.unwanted):
        assert phrase(attribute) in made.text


def words(template: str) -> str:
    """A template without case, punctuation and the order of its fields."""
    return " ".join(re.findall(r"[a-z']+", re.sub(r"(\{\w+?)2?\}", r"\1", template).lower()))


def test_there_are_enough_templates() -> None:
    for templates, minimum, none in (
        (TRAIN_TEMPLATES, TRAIN_MINIMUM, 40),
        (TEST_TEMPLATES, TEST_MINIMUM, 15),
    ):
        assert tuple(templates) == FAMILIES
        for family, least in {**minimum, "none": none}.items():
            assert len(templates[family]) >= least, family


def test_all_wordings_differ_within_and_between_the_sets() -> None:
    everything = [
        words(template)
        for templates in (TRAIN_TEMPLATES, TEST_TEMPLATES)
        for family in templates.values()
        for template in family
    ]
    assert len(set(everything)) == len(everything)


def test_test_templates_share_no_set_of_words_with_training() -> None:
    trained = {frozenset(words(template).split()) for family in TRAIN_TEMPLATES.values() for template in family}
    tested = [frozenset(words(template).split()) for family in TEST_TEMPLATES.values() for template in family]
    # Counted, not shown: whoever works on the method does not look at the wordings of the test.
    assert sum(one in trained for one in tested) == 0


@pytest.mark.parametrize("templates", [TRAIN_TEMPLATES, TEST_TEMPLATES])
def test_templates_fit_their_families(templates: dict[str, tuple[str, ...]]) -> None:
    made = RequestGenerator(GENRES, templates)
    rng = random.Random(0)
    for family in FAMILIES:
        for _ in range(200):
            check_shape(made.counterfactual(rng, family))


def test_templates_have_no_article_before_a_field() -> None:
    for templates in (TRAIN_TEMPLATES, TEST_TEMPLATES):
        for family in templates.values():
            for template in family:
                assert not re.search(r"\ban? \{wanted\}|\ban? \{unwanted", template), template
