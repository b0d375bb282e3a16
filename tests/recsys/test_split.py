import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.interactions import Interactions
from cramer_peft.recsys.split import leave_one_out, pad_histories, seen_mask

items = st.integers(0, 20)


def make(sequences: list[list[int]]) -> Interactions:
    ids = tuple(f"u{index}" for index in range(len(sequences)))
    return Interactions(ids, tuple(torch.tensor(s, dtype=torch.long) for s in sequences))


def tensors(*rows: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row, dtype=torch.long) for row in rows)


@given(st.lists(st.lists(items, min_size=3, max_size=9), min_size=1, max_size=5))
def test_parts_make_up_the_sequence_again(sequences: list[list[int]]) -> None:
    split = leave_one_out(make(sequences))
    assert split.validation_target.dtype == split.test_target.dtype == torch.long
    assert split.validation_target.shape == split.test_target.shape == (len(sequences),)
    for row, sequence in enumerate(sequences):
        targets = [split.validation_target[row].item(), split.test_target[row].item()]
        assert split.train[row].tolist() + targets == sequence
        assert split.history("validation")[row].tolist() == sequence[:-2]
        assert split.history("test")[row].tolist() == sequence[:-1]


def test_short_sequence_and_no_users() -> None:
    with pytest.raises(DataError, match="user_id 'u1' has 2 items, expected 3"):
        leave_one_out(make([[1, 2, 3], [1, 2]]))
    with pytest.raises(DataError, match="no users"):
        leave_one_out(make([]))


def test_unknown_stage() -> None:
    with pytest.raises(DataError, match="stage: found 'train'"):
        leave_one_out(make([[1, 2, 3]])).history("train")  # type: ignore[arg-type]


def test_padding_is_behind_and_items_are_shifted() -> None:
    padded = pad_histories(tensors([0], [4, 5, 6, 7]), 3)
    assert padded.tolist() == [[1, 0, 0], [6, 7, 8]]
    assert padded.dtype == torch.long


@given(st.lists(st.lists(items, min_size=1, max_size=8), max_size=5), st.integers(1, 10))
def test_padding_keeps_the_most_recent(histories: list[list[int]], length: int) -> None:
    padded = pad_histories(tensors(*histories), length)
    assert padded.shape == (len(histories), length)
    for row, history in zip(padded.tolist(), histories, strict=True):
        kept = history[-length:]
        assert row == [item + 1 for item in kept] + [0] * (length - len(kept))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (torch.zeros(0, dtype=torch.long), r"histories\[1\] is empty"),
        (torch.tensor([1.0]), r"histories\[1\]: found torch.float32"),
        (torch.tensor([[1]]), r"of shape \(1, 1\)"),
        (torch.tensor([-1]), r"histories\[1\]: item index -1"),
    ],
)
def test_bad_histories(history: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pad_histories((torch.tensor([1]), history), 4)


def test_bad_length() -> None:
    with pytest.raises(DataError, match="length: found 0"):
        pad_histories(tensors([1]), 0)


@given(st.lists(st.lists(items, max_size=8), max_size=5))
def test_seen_mask(histories: list[list[int]]) -> None:
    mask = seen_mask(tensors(*histories), 21)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(histories), 21)
    for row, history in zip(mask, histories, strict=True):
        assert row.nonzero().flatten().tolist() == sorted(set(history))


@pytest.mark.parametrize("item", [-1, 3])
def test_seen_mask_out_of_range(item: int) -> None:
    with pytest.raises(DataError, match=rf"histories\[1\]: item index {item} is not in 0 … 2"):
        seen_mask(tensors([0], [1, item]), 3)
