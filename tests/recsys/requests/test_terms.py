import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.encoders import WORD
from cramer_peft.errors import MissingExtraError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests import terms as terms_module
from cramer_peft.recsys.requests.terms import Terms, read_terms, runs_of_content, stem, stems
from cramer_peft.recsys.requests.wordings import frame_words

pytest.importorskip("snowballstemmer")


def catalogue(titles: list[str], genres: list[str] | None = None, **texts: list[str]) -> Catalogue:
    """Items with a genre each, or none, and columns of texts."""
    names = tuple(sorted(set(genres or []) - {""}))
    flags = torch.tensor([[name == genre for name in names] for genre in genres or [""] * len(titles)])
    columns = {name: tuple(column) for name, column in texts.items()}
    ids = tuple(map(str, range(len(titles))))
    return Catalogue(ids, tuple(titles), names, flags.bool().view(len(titles), len(names)), texts=columns)


def having(terms: Terms, *words: str) -> dict[int, float]:
    """The items that have the term of these words, and how much."""
    number = terms.numbers[stems(words)]
    own = terms.columns == number
    return dict(zip(terms.items[own].tolist(), terms.weights[own].tolist(), strict=True))


@pytest.mark.parametrize(
    ("words", "expected"),
    [("robots robot", {"robot"}), ("courtrooms courtroom", {"courtroom"}), ("exploding explode explodes", {"explod"})],
)
def test_inflections_share_a_stem(words: str, expected: set[str]) -> None:
    assert {stem(word) for word in words.split()} == expected


def test_punctuation_has_no_stem() -> None:
    assert stems(["gold", "-", "rush", "!"]) == ("gold", "rush")


def test_stems_are_the_same_in_threads() -> None:
    words = [f"{start}{middle}{end}" for start in "bcdfg" for middle in ("ank", "olv", "eas") for end in ("ing", "ed")]
    stem.cache_clear()
    expected = [stem(word) for word in words]
    for _ in range(20):
        stem.cache_clear()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: [stem(word) for word in words], range(4)))
        assert all(own == expected for own in found)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    terms_module._stemmer.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"cramer-peft\[demo\]"):
            terms_module._stemmer()
    finally:
        terms_module._stemmer.cache_clear()


def test_runs_of_content_leave_out_what_requests_of_any_kind_say() -> None:
    assert {"something", "with", "no", "please", "more", "a", "i"} <= frame_words()
    assert not {"robots", "zombies", "courtroom", "submarine"} & frame_words()
    words = WORD.findall("i want something with killer robots, or zombies please")
    assert [words[start:stop] for start, stop in runs_of_content(words)] == [["killer", "robots"], ["zombies"]]
    assert list(runs_of_content([])) == []


def test_attributes_and_values_are_terms_even_of_one_item() -> None:
    terms = read_terms(catalogue(["A", "B", "C"], ["Sci-Fi", "", ""], tags=["", "gold rush|heist", "space"]), 3)
    assert terms.names == ("gold", "gold rush", "heist", "rush", "sci-fi", "space")  # one value alone, too
    assert having(terms, "sci-fi") == {0: 1.0}
    assert having(terms, "gold", "rush") == {1: 1.0}
    assert having(terms, "rush") == {1: 1.0}
    assert bool(terms.values.all())
    assert not terms.said.any()


def test_words_of_titles_and_texts_are_terms_of_two_items_or_more_and_not_of_most() -> None:
    titles = ["Robot Dawn", "The Robots", "Robot Noon", "Parrot", "Whale One", "Whale Two", "Lake", "Whales"]
    terms = read_terms(catalogue(titles, summary=["blue lagoon", "", "", "blue", "", "", "", ""]), 8)
    assert terms.names == ("blue", "robot", "whale")
    assert sorted(having(terms, "robots")) == [0, 1, 2]
    assert all(weight < 1 for weight in having(terms, "robot").values())  # less than a value
    assert not terms.values.any()
    common = read_terms(catalogue(["Robot A", "Robot B", "Robot C", "Other"]), 4)
    assert common.names == ()


def test_what_was_said_is_a_value_that_weighs_more_the_more_say_it() -> None:
    said = ["scary house|scary house|scary house", "scary house", "", ""]
    terms = read_terms(catalogue(["A", "B", "C", "D"], said=said), 4)
    weights = having(terms, "scary", "house")
    assert sorted(weights) == [0, 1]
    assert weights[0] > 1.5 * weights[1]
    assert set(terms.names) == {"scary house", "scary", "house"} - (frame_words() & {"scary", "house"})


def test_of_a_long_request_the_words_that_say_something_are_left() -> None:
    said = ["i want something with killer robots please, it was a gift for me", "", ""]
    terms = read_terms(catalogue(["A", "B", "C"], said=said), 3)
    assert {"killer robots", "killer", "robots"} <= set(terms.names)
    assert not {"want", "something", "please", "i want something with"} & set(terms.names)


def test_a_term_is_named_as_most_items_write_it() -> None:
    tags = ["robots|x1", "robots|x2", "robot|x3"]
    assert "robots" in read_terms(catalogue(["A", "B", "C"], tags=tags), 3).names


def test_items_that_were_added_make_no_terms_but_have_them() -> None:
    tags = ["heist|robots", "heist|robots", "heists|ghosts", "ghosts|robot"]
    terms = read_terms(catalogue(["A", "B", "C", "D"], tags=tags), 2)
    assert terms.names == ("heist", "robots")
    assert sorted(having(terms, "heist")) == [0, 1, 2]
    assert sorted(having(terms, "robot")) == [0, 1, 3]


def test_the_matrix_holds_the_weights() -> None:
    terms = read_terms(catalogue(["A", "B", "C"], tags=["heist|robots", "heist|", "ghosts|"]), 3)
    found = terms.matrix(3).to_dense()
    assert found.shape == (3, 3)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 1], [1, 1, 0], [1, 0, 0]]))


def test_a_catalogue_without_a_word_has_no_terms() -> None:
    terms = read_terms(catalogue(["1", "2"]), 2)
    assert (terms.names, terms.numbers) == ((), {})
    assert terms.matrix(2).shape == (0, 2)


def test_long_texts_are_cut() -> None:
    words = [a + b for a in ("bax", "cex", "dix", "fox", "gux", "hax", "jex", "kix") for b in "bcdfghjklm"]
    terms = read_terms(catalogue(["A", "B", "C", "D", "E"], summary=[" ".join(words)] * 2 + [""] * 3), 5)
    assert len(terms.names) == 60


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.data())
def test_any_texts_have_terms_of_their_items(texts: list[str], data: st.DataObject) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    described = data.draw(st.integers(1, len(texts)))
    terms = read_terms(catalogue(["A"] * len(texts), tags=texts, said=texts), described)
    assert len(terms.names) == len(terms.numbers) == len(terms.values)
    assert bool(torch.isfinite(terms.weights).all())
    assert terms.items.numel() == 0 or int(terms.items.max()) < len(texts)
    assert terms.matrix(len(texts)).shape == (len(terms.names), len(texts))
