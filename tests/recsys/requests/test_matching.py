from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.requests import matching
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import excludes, match_scores, satisfied_by, satisfies

ITEM_ATTRIBUTES = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
ABC = ("a", "b", "c")
names = st.lists(st.sampled_from(ABC), unique=True)


def request(wanted: Sequence[str] = (), unwanted: Sequence[str] = ()) -> AttributeRequest:
    return AttributeRequest("text", tuple(wanted), tuple(unwanted), "mixed")


def test_match_scores_by_hand() -> None:
    asked = [
        request(["a"]),
        request(unwanted=["a"]),
        request(["a", "b"]),
        request(unwanted=["a", "b"]),
        request(["b"], ["a"]),
        request(["a", "c"], ["b"]),
        request(),
    ]
    scores = match_scores(asked, ABC, ITEM_ATTRIBUTES)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [
        [1, 1, 0, 0],
        [-1, -1, 0, 0],
        [1, 0.5, 0, 0],
        [-1, -0.5, 0, 0],
        [0, -1, 0, 0],
        [-0.5, 0.5, 0.5, 0],
        [0, 0, 0, 0],
    ]
    assert satisfies(asked, ABC, ITEM_ATTRIBUTES).int().tolist() == [
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [1, 1, 1, 1],
    ]


@given(st.lists(st.tuples(names, names), max_size=4))
def test_matching_agrees_with_a_plain_loop(asked: list[tuple[list[str], list[str]]]) -> None:
    requests = [request(wanted, unwanted) for wanted, unwanted in asked]
    scores = match_scores(requests, ABC, ITEM_ATTRIBUTES)
    fits = satisfies(requests, ABC, ITEM_ATTRIBUTES)
    assert scores.shape == fits.shape == (len(asked), 4)
    some = torch.tensor([[3, 0, 3]]).expand(len(asked), 3)
    assert torch.equal(satisfied_by(requests, ABC, ITEM_ATTRIBUTES, some), fits.gather(1, some))
    for row, (wanted, unwanted) in enumerate(asked):
        for item, flags in enumerate(ITEM_ATTRIBUTES.tolist()):
            has = {name for name, flag in zip(ABC, flags, strict=True) if flag}
            share = sum(name in has for name in wanted) / max(len(wanted), 1)
            share -= sum(name in has for name in unwanted) / max(len(unwanted), 1)
            assert scores[row, item].item() == pytest.approx(share, abs=1e-6)
            assert fits[row, item].item() == (set(wanted) <= has and not set(unwanted) & has)


def test_matching_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [request(["a"]), request(["b"], ["a"]), request(unwanted=["c", "a"]), request(), request(["a"], ["a"])]
    flags = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    functions = (match_scores, satisfies, excludes)
    whole = [function(asked, ABC, flags) for function in functions]
    monkeypatch.setattr(matching, "_PIECE", 30)
    for function, expected in zip(functions, whole, strict=True):
        assert torch.equal(function(asked, ABC, flags), expected)
        assert function(asked, ABC, flags[:0]).shape == (5, 0)
        assert function([], ABC, flags).shape == (0, 50)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 3), torch.tensor(True)])
def test_item_attributes_must_be_bool_and_fit(wrong: torch.Tensor) -> None:
    for function in (match_scores, satisfies):
        with pytest.raises(DataError, match=r"expected torch.bool of shape"):
            function([request(["a"])], ABC, wrong)
