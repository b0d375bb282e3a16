import random

from hypothesis import given
from hypothesis import strategies as st
from teaching.grammar import NEITHER, UNWANTED, WANTED, Grammar, parts

seeds = st.integers(0, 2**32)


def test_no_kind_of_part_is_empty() -> None:
    found = parts()
    assert set(found) == {
        *(f"{place} {side}" for place in ("before", "after") for side in ("wanted", "unwanted")),
        *("nothing", "opening", "closing", "noun", "phrase"),
    }
    for kind, own in found.items():
        assert len(own) >= 30, kind
        assert len(set(own)) == len(own), kind
        assert all(part == part.strip() and part for part in own), kind


@given(seeds)
def test_what_is_asked_about_is_a_phrase_and_the_rest_is_not_marked(seed: int) -> None:
    pieces = Grammar(phrases=("PHRASE",))(random.Random(seed))
    assert all(text for text, _ in pieces)
    for text, mark in pieces:
        assert mark in (NEITHER, WANTED, UNWANTED)
        assert (text == "PHRASE") == (mark != NEITHER)


@given(seeds)
def test_equal_states_draw_equal_sentences(seed: int) -> None:
    grammar = Grammar(["spoon"])
    assert grammar(random.Random(seed)) == grammar(random.Random(seed))


def test_all_kinds_of_sentences_are_drawn() -> None:
    rng, grammar = random.Random(0), Grammar(phrases=("x",))
    drawn = [frozenset(mark for _, mark in grammar(rng)) - {NEITHER} for _ in range(500)]
    for kind in ({WANTED}, {UNWANTED}, {WANTED, UNWANTED}, set[int]()):
        assert drawn.count(frozenset(kind)) > 25


def test_words_of_the_language_are_asked_about_too() -> None:
    rng, grammar = random.Random(0), Grammar(["spoon"], ["fork"])
    drawn = [grammar.phrase(rng) for _ in range(300)]
    assert set(drawn) == {"spoon", "spoon spoon", "fork"}
    assert 0.2 < sum(phrase != "fork" for phrase in drawn) / 300 < 0.5
