from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cramer_peft.encoders import words_of
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.known_wordings import KnownWordings
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES

pytest.importorskip("wordllama")
pytest.importorskip("snowballstemmer")

NAMES = ["comedy", "drama", "horror", "sci-fi", "war", "western"]
TEMPLATES = [text for family in TEST_TEMPLATES.values() for text in family]
CONTEXTS = ["something {0} but no {1}", "any {0} film like the {1} of Lisbon", "from year 1953, {0} rather than {1}"]


def filled(template: str, first: str, second: str) -> str:
    """A sentence of a template, whatever its fields are called."""
    names = iter([first, second] * 4)
    while "{" in template:
        start, stop = template.index("{"), template.index("}")
        template = template[:start] + next(names) + template[stop + 1 :]
    return template


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*TEMPLATES, *CONTEXTS]), st.permutations(NAMES))
@example(CONTEXTS[0], ["war", "war", "war", "war", "war", "war"])
@example(CONTEXTS[1], ["horror", "trench", "war", "comedy", "western", "drama"])
def test_a_known_wording_is_understood_as_a_new_one(hearing: HearingEncoder, template: str, names: list[str]) -> None:
    text = filled(template, *names[:2])
    words = words_of(text)
    (found, missed), again = hearing._heard([text])[0], hearing._heard([text])[0]
    alone, alone_missed = hearing._read({words: hearing._named(words)})[words]
    assert (missed, again[1]) == (alone_missed, alone_missed)
    assert [(part.text, part.name, part.wanted) for part in found] == [(p.text, p.name, p.wanted) for p in alone]
    assert all(torch.equal(one.meaning, other.meaning) for one, other in zip(found, alone, strict=True))


def test_a_wording_is_read_once(hearing: HearingEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(hearing, "_read", lambda named: read.extend(named) or HearingEncoder._read(hearing, named))
    texts = [
        f"an evening with {a}, but hold the {b}" for a in ("horror", "comedy") for b in ("war", "western", "drama")
    ]
    vectors = hearing.encode(texts)
    assert len(read) == 1
    assert len({tuple(row.tolist()) for row in vectors}) == len(texts)
    hearing.encode(["an evening with sci-fi, but hold the horror"])
    assert len(read) == 1


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("something horror , please", True),
        ("something horror ghoulish , please", False),  # not a usual word of requests
        ("something like horror", True),
    ],
)
def test_an_attribute_is_left_open_among_usual_words(text: str, is_open: bool) -> None:
    words = tuple(text.split())
    place = words.index("horror")
    wording, named = KnownWordings(lambda *_: True).of(words, [(place, place + 1, "horror")])
    assert (wording != words) is is_open
    assert (named[0][2] != "horror") is is_open


def test_an_attribute_that_a_title_may_hold_is_not_left_open() -> None:
    words = ("the", "war", "of", "worlds")
    assert KnownWordings(lambda *_: False).of(words, [(1, 2, "war")]) == (words, [(1, 2, "war")])


def test_titles_with_an_attribute_are_found(hearing: HearingEncoder) -> None:
    facts = hearing._facts
    assert facts.is_apart(("some", "war", "please"), 1, 2)
    assert not facts.is_apart(("like", "trench", "of", "lisbon"), 1, 2)  # "The Trench of Lisbon"
