import torch

from cramer_peft.recsys.requests.request_parts import OPEN, RequestPart, as_their_heads


def part(text: str, wanted: bool, kind: str = OPEN) -> RequestPart:
    return RequestPart(text, kind, text, torch.zeros(2), wanted)


def test_open_words_take_the_side_of_those_behind_them() -> None:
    strong, women, zombies = part("strong", False), part("women", True), part("zombies", False)
    found = as_their_heads([((0, 1), strong), ((1, 2), women), ((4, 5), zombies)])
    assert [(own.text, own.wanted) for own in found] == [("strong", True), ("women", True), ("zombies", False)]


def test_an_attribute_gives_and_takes_no_side() -> None:
    rows = [((0, 1), part("sad", False)), ((1, 2), part("comedy", True, "attribute")), ((2, 3), part("robots", False))]
    assert [own.wanted for own in as_their_heads(rows)] == [False, True, False]


def test_nothing_is_nothing() -> None:
    assert as_their_heads([]) == []
