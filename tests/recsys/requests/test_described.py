import pytest

from cramer_peft.encoders import words_of
from cramer_peft.recsys.requests.described import announces_title, as_read, is_empty, opens
from cramer_peft.recsys.requests.request_parts import OPEN, Thing


def read(request: str, *things: Thing) -> str:
    return " ".join(as_read(words_of(request), things))


def test_the_reader_sees_words_that_it_knows() -> None:
    comedy: Thing = ((2, 3), "attribute", "comedy")
    assert read("an edgy comedy", ((1, 2), OPEN, None), comedy) == "an good comedy"
    assert read("a light comedy", comedy) == "a good comedy"
    assert read("go light on the comedy", ((4, 5), "attribute", "comedy")) == "go light on the comedy"
    assert read("films from space", ((0, 1), OPEN, None), ((2, 3), OPEN, None)) == "films with space"
    assert read("away from comedy", comedy) == "away from comedy"
    assert read("similar to comedy", comedy) == "such as comedy"


def test_words_of_wordings_stay_before_an_attribute() -> None:
    """They may turn the sentence: "hate comedy"."""
    assert read("hate comedy", ((0, 1), OPEN, None), ((1, 2), "attribute", "comedy")) == "hate comedy"


@pytest.mark.parametrize(
    ("words", "place", "expected"), [("a cosy film", 1, True), ("she finds war", 1, False), ("cosy", 0, True)]
)
def test_what_a_thing_may_begin_after(words: str, place: int, expected: bool) -> None:
    assert opens(words.split(), place) is expected


def test_praise_is_empty_and_talk_is_unless_items_have_it() -> None:
    assert is_empty(["good"], None)
    assert is_empty(["good"], 3)
    assert is_empty(["specific"], None)
    assert not is_empty(["specific"], 3)
    assert not is_empty(["spooky"], None)


def test_words_right_before_a_title_announce_it() -> None:
    similar: Thing = ((0, 1), OPEN, None)
    assert announces_title(similar, [similar, ((2, 3), "title", None)])
    assert not announces_title(similar, [similar, ((9, 10), "title", None)])
    assert not announces_title(similar, [similar, ((2, 3), OPEN, None)])
