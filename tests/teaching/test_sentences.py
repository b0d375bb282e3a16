import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teaching.grammar import NEITHER, UNWANTED, WANTED, Grammar
from teaching.sentences import fill, mark_words, sentences, template_pieces, wording

from cramer_peft.encoders import LONGEST
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

ABOUT = Grammar(phrases=("qqq", "qqq rrr"))
PLACE = wording([("", WANTED)])  # what stands for what is asked about


def test_marks_land_on_the_words_of_their_piece() -> None:
    pieces = [
        ("I'd like ", NEITHER),
        ("Film noir", WANTED),
        (", but no ", NEITHER),
        ("sci-fi", UNWANTED),
        ("!", NEITHER),
    ]
    words, marks = mark_words(pieces)
    assert words == ("i'd", "like", "film", "noir", ",", "but", "no", "sci-fi", "!")
    assert marks == (0, 0, WANTED, WANTED, 0, 0, 0, UNWANTED, 0)


def test_a_word_across_pieces_has_the_mark_of_either() -> None:
    assert mark_words([("non-", NEITHER), ("horror", UNWANTED), ("s", NEITHER)]) == (("non-horrors",), (UNWANTED,))


def test_no_more_words_than_are_read() -> None:
    words, marks = mark_words([("a " * (LONGEST + 5), WANTED)])
    assert len(words) == len(marks) == LONGEST


@given(st.sampled_from([(family, t) for family, own in TRAIN_TEMPLATES.items() for t in own]), st.integers(0, 99))
def test_training_wordings_are_marked_by_their_fields(template: tuple[str, str], seed: int) -> None:
    words, marks = mark_words(fill(template[1], ABOUT, random.Random(seed)))
    for word, mark in zip(words, marks, strict=True):
        assert (mark != NEITHER) == ("qqq" in word or "rrr" in word)
    runs = Counter(mark for word, mark in zip(words, marks, strict=True) if "qqq" in word)
    expected = {
        "for": (1, 0),
        "against": (0, 1),
        "for_pair": (2, 0),
        "against_pair": (0, 2),
        "mixed": (1, 1),
        "none": (0, 0),
    }
    assert (runs[WANTED], runs[UNWANTED]) == expected[template[0]]


def test_a_wording_is_what_is_said_whatever_about() -> None:
    first = wording([("No, ", NEITHER), ("horror", UNWANTED), (" please!", NEITHER)])
    assert first == wording([("no ", NEITHER), ("film noir", UNWANTED), (" please", NEITHER)])
    assert first == wording(template_pieces("No {unwanted}, PLEASE."))
    assert first != wording(template_pieces("No {unwanted} thanks"))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_sentence_holds_a_wording_of_the_test(share: float) -> None:
    tested = [wording(template_pieces(t)) for own in TEST_TEMPLATES.values() for t in own]
    rng, grammar = random.Random(5), Grammar(phrases=(PLACE,))  # words that are drawn then read as wordings do
    rows = sentences(4000, TRAIN_TEMPLATES, grammar, rng, template_share=share)
    assert len(rows) == 4000
    for words, _ in rows:
        said = f" {wording([(' '.join(words), NEITHER)])} "
        # Not shown: whoever works on the method does not look at the wordings of the test.
        held = sum(f" {' '.join(one.split())} " in said for one in tested)
        assert held == 0


def test_a_wording_is_left_out_inside_a_longer_sentence_too() -> None:
    templates = {"against": ["Hi there, no {unwanted} today", "skip {unwanted}"]}
    never = {wording(template_pieces("No {unwanted}!"))}
    rows = sentences(50, templates, ABOUT, random.Random(0), template_share=1.0, never=never)
    assert {words[0] for words, _ in rows} == {"skip"}
    assert {words[0] for words, _ in sentences(50, templates, ABOUT, random.Random(0), 1.0, never=())} == {"skip", "hi"}


def test_families_are_drawn_evenly_and_beside_the_grammar() -> None:
    templates = {"for": ["aaa {wanted}"], "none": [f"bbb {word}" for word in ("c", "d", "e", "f")]}
    rows = sentences(1000, templates, ABOUT, random.Random(0), template_share=0.6, never=())
    first = Counter(words[0] for words, _ in rows)
    assert first["aaa"] == pytest.approx(300, abs=60)
    assert first["bbb"] == pytest.approx(300, abs=60)


def test_equal_states_draw_equal_sentences() -> None:
    first, again, other = (sentences(20, TRAIN_TEMPLATES, Grammar(), random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
