import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.encoders import words_of
from cramer_peft.recsys.requests.wish_forms import feelings_by_form, wishes_by_form


def wishes(request: str) -> dict[str, bool]:
    words = words_of(request)
    return {" ".join(words[slice(*span)]): wanted for span, wanted in wishes_by_form(words).items()}


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("something that makes me cry", {"cry": True}),
        ("Make me laugh!", {"laugh": True}),
        ("scare me", {"scare": True}),
        ("I'm sad, cheer me up", {"cheer": True}),
        ("I want to be scared tonight", {"scared": True}),
        ("I want to be scared to death", {"scared": True}),
        ("I feel like laughing", {"laughing": True}),
        ("I don't feel like crying", {"crying": False}),
        ("I need a good laugh", {"laugh": True}),
        ("I'm in a nostalgic mood", {"nostalgic": True}),
        ("not in a romantic mood today", {"romantic": False}),
        ("nothing that makes me cry", {"cry": False}),
        ("I don't want to be scared", {"scared": False}),
        ("something my kids can watch", {"kids": True}),
        ("something to watch with my whole family", {"family": True}),
        ("a game for the children", {"children": True}),
        ("not for kids", {"kids": False}),
    ],
)
def test_wishes_are_told_by_their_form(request_text: str, expected: dict[str, bool]) -> None:
    assert wishes(request_text) == expected


@pytest.mark.parametrize(
    "request_text",
    [
        "show me a film",
        "surprise me",
        "Impress me.",
        "Don't make me choose.",
        "I want to cancel",
        "I'm in a good mood",
        "I'd love to stay and chat",
        "my family is here with the children",
        "they had it with children",
        "",
    ],
)
def test_other_sentences_have_none(request_text: str) -> None:
    assert wishes(request_text) == {}


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("I'm sad, cheer me up", ["sad"]),
        ("make me laugh, I am so tired and lonely", ["tired", "lonely"]),
        ("I feel a bit down today, cheer me up", ["down"]),
        ("feeling lonely, cheer me up please", ["lonely"]),
        ("I'm in the mood for something sad", []),
        ("I'm looking for a good cry", []),
        ("I'm in a good mood", []),
        ("a film about feeling lost in a city", []),
    ],
)
def test_feelings_are_told_by_their_form(request_text: str, expected: list[str]) -> None:
    words = words_of(request_text)
    assert [" ".join(words[slice(*span)]) for span in feelings_by_form(words)] == expected


PIECES = "makes make me us i feel i'm so want to be scare cry for with my kids can watch up , . not ’ é 7"


@given(st.lists(st.sampled_from(PIECES.split(" "))))
def test_each_is_one_word_of_the_request(words: list[str]) -> None:
    spans = [*wishes_by_form(words), *feelings_by_form(words)]
    assert all(0 <= start < stop == start + 1 <= len(words) for start, stop in spans)
