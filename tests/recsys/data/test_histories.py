from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.histories import HistoryWindows, as_history, pad_histories, seen_mask

items = st.integers(0, 20)
histories = st.integers(1, 3)
pytest.importorskip("accelerate")
histories_of_items = st.lists(st.lists(st.integers(0, 30), max_size=13), min_size=1, max_size=4)


def tensors(*rows: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row, dtype=torch.long) for row in rows)


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


@given(histories_of_items.filter(lambda rows: any(len(row) > 1 for row in rows)), st.integers(1, 6))
def test_every_transition_is_there_once(rows: list[list[int]], length: int) -> None:
    windows = HistoryWindows([torch.tensor(row, dtype=torch.long) for row in rows], length)
    found = []
    for window in (windows[index] for index in range(len(windows))):
        item_ids, labels = window["item_ids"].tolist(), window["labels"].tolist()
        assert len(item_ids) == len(labels) == length
        count = sum(item > 0 for item in item_ids)
        assert count >= 1
        assert item_ids[count:] == [0] * (length - count)
        assert labels[count:] == [-100] * (length - count)
        shifted = [item - 1 for item in item_ids[:count]]
        assert shifted[1:] == labels[: count - 1]  # a window is one stretch of a history
        found += zip(shifted, labels[:count], strict=True)
    assert sorted(found) == sorted(pair for row in rows for pair in pairwise(row))


def test_windows_by_hand() -> None:
    windows = HistoryWindows([torch.tensor([4, 5, 6, 7]), torch.tensor([9]), torch.tensor([1, 2])], 2)
    assert windows.item_ids.tolist() == [[6, 7], [5, 0], [2, 0]]
    assert windows.labels.tolist() == [[6, 7], [5, -100], [2, -100]]


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="no history has two items"):
        HistoryWindows([torch.tensor([1]), torch.tensor([], dtype=torch.long)], 4)


def test_histories_that_are_no_tensors() -> None:
    for use in (lambda rows: pad_histories(rows, 3), lambda rows: seen_mask(rows, 9)):
        with pytest.raises(DataError, match=r"histories\[1\]: found list, expected a tensor"):
            use([torch.tensor([1]), [1, 2]])


def test_whole_numbers_of_any_kind() -> None:
    assert as_history(iter([4, 0]), 5).tolist() == [4, 0]
    assert as_history([], 5).dtype == torch.long
    with pytest.raises(DataError, match=r"history\[1\]: found 1\.0 \(float\), expected a whole number.*index_of"):
        as_history([0, 1.0], 5)
    with pytest.raises(DataError, match="item index 5 is not in 0 … 4"):
        as_history([5], 5)
