"""Histories as tensors: padded, as a mask of seen items, and cut into windows for training."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from cramer_peft.errors import DataError

NO_LABEL = -100


def as_history(items: object, num_items: int) -> Tensor:
    """Return item indices, given as whole numbers of any kind in an order, as int64 of shape (n,).

    Raises:
        DataError: If one is no whole number (floats and bools are none), or no index of ``num_items`` items.
    """
    values = items.tolist() if hasattr(items, "tolist") else items
    if isinstance(values, str | bytes | Set | Mapping) or not isinstance(values, Iterable):
        raise DataError(f"history: found {reprlib.repr(items)}, expected a sequence of item indices.")
    hint = "catalogue.index_of(item_id) and catalogue.find_title(title) give an item's index."
    found = [whole_number(f"history[{place}]", value, hint) for place, value in enumerate(values)]
    for value in found:
        if not 0 <= value < num_items:
            raise DataError(f"history: item index {value} is not in 0 … {num_items - 1}.")
    return torch.tensor(found, dtype=torch.long)


def whole_number(name: str, value: Any, hint: str = "") -> int:
    """Return an int, also given as a scalar of numpy or torch; raise a DataError for anything else."""
    if hasattr(value, "item"):
        with suppress(RuntimeError, ValueError):  # a tensor of several numbers
            value = value.item()
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise DataError(f"{name}: found {reprlib.repr(value)} ({kind}), expected a whole number. {hint}".rstrip())
    return value


def pad_histories(histories: Sequence[Tensor], length: int) -> Tensor:
    """Return the most recent items of histories, (n,) int64 from 0 each, plus 1, then zeros, (rows, length) int64."""
    if length < 1:
        raise DataError(f"length: found {length}, expected 1 or more.")
    for row, history in enumerate(histories):
        _check_history(row, history)
        if not len(history):
            raise DataError(f"histories[{row}] is empty, expected at least one item. Leave out such users.")
    if not histories:
        return torch.zeros(0, length, dtype=torch.long)
    rows = pad_sequence([history[-length:] + 1 for history in histories], batch_first=True)
    return pad(rows, (0, length - rows.shape[1]))


def seen_mask(histories: Sequence[Tensor], num_items: int) -> Tensor:
    """Mark the items of each history, (n,) int64 each; bool of shape ``(rows, num_items)`` on the histories' device."""
    for row, history in enumerate(histories):
        _check_history(row, history, num_items)
    if not histories:
        return torch.zeros(0, num_items, dtype=torch.bool)
    items = torch.cat(list(histories))
    lengths = torch.tensor([len(history) for history in histories], device=items.device)
    rows = torch.repeat_interleave(torch.arange(len(histories), device=items.device), lengths)
    mask = torch.zeros(len(histories), num_items, dtype=torch.bool, device=items.device)
    mask[rows, items] = True
    return mask


def _check_history(row: int, history: Tensor, num_items: int | None = None) -> None:
    if not isinstance(history, Tensor):
        raise DataError(f"histories[{row}]: found {type(history).__name__}, expected a tensor int64 of shape (n,).")
    if history.dtype != torch.long or history.dim() != 1:
        raise DataError(
            f"histories[{row}]: found {history.dtype} of shape {tuple(history.shape)}, expected int64 of shape (n,)."
        )
    if not len(history):
        return
    low, high = int(history.min()), int(history.max())
    if low < 0 or (num_items is not None and high >= num_items):
        wrong = low if low < 0 else high
        top = "items - 1" if num_items is None else str(num_items - 1)
        raise DataError(f"histories[{row}]: item index {wrong} is not in 0 … {top}.")


class HistoryWindows(Dataset[dict[str, Tensor]]):
    """Windows of histories, (n,) int64 from 0 each, with the next item at each position, for causal training.

    A history longer than ``length`` gives several windows, aligned to its end.
    """

    def __init__(self, histories: Sequence[Tensor], length: int) -> None:
        pieces = [
            history[max(0, end - length - 1) : end] for history in histories for end in range(len(history), 1, -length)
        ]
        if not pieces:
            raise DataError("no history has two items: there is nothing to train on.")
        self.item_ids = pad_histories([piece[:-1] for piece in pieces], length)
        following = pad_histories([piece[1:] for piece in pieces], length) - 1
        self.labels = torch.where(self.item_ids > 0, following, NO_LABEL)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"item_ids": self.item_ids[index], "labels": self.labels[index]}

    def fingerprint(self) -> str:
        """Return a hash of all windows, by which a checkpoint recognises its data."""
        digest = hashlib.sha256()
        for tensor in (self.item_ids, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]
