"""Leave-one-out split of users' sequences, and the tensors that models and metrics take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from cramer_peft.errors import DataError
from cramer_peft.recsys.interactions import Interactions

Stage = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """A leave-one-out split: the last item tests, the one before it validates, the rest trains.

    Args:
        train: Per user an int64 tensor of shape ``(length,)``: all items but the last two.
        validation_target: Int64, shape ``(users,)``: the last item but one.
        test_target: Int64, shape ``(users,)``: the last item.
    """

    train: tuple[Tensor, ...]
    validation_target: Tensor
    test_target: Tensor

    def history(self, stage: Stage) -> tuple[Tensor, ...]:
        """Return what is known of each user before the target of ``stage``.

        Args:
            stage: "validation" gives the training items, "test" those and the validation target.

        Raises:
            DataError: If ``stage`` is neither.
        """
        if stage == "validation":
            return self.train
        if stage == "test":
            targets = self.validation_target.unsqueeze(1)
            return tuple(torch.cat(pair) for pair in zip(self.train, targets, strict=True))
        raise DataError(f"stage: found {stage!r}, expected 'validation' or 'test'.")


def leave_one_out(interactions: Interactions) -> Split:
    """Split every user's sequence into training items, a validation target and a test target.

    Args:
        interactions: Users with three items or more each.

    Raises:
        DataError: If there are no users, or one has fewer than three items.
    """
    if not interactions.sequences:
        raise DataError("There are no users to split. Load interactions of at least one user.")
    for user_id, sequence in zip(interactions.user_ids, interactions.sequences, strict=True):
        if len(sequence) < 3:
            raise DataError(
                f"user_id {user_id!r} has {len(sequence)} items, expected 3 or more for a "
                "leave-one-out split. Load with min_interactions=3."
            )
    return Split(
        train=tuple(sequence[:-2] for sequence in interactions.sequences),
        validation_target=torch.stack([sequence[-2] for sequence in interactions.sequences]),
        test_target=torch.stack([sequence[-1] for sequence in interactions.sequences]),
    )


def pad_histories(histories: Sequence[Tensor], length: int) -> Tensor:
    """Bring histories to one length: the most recent items, left-aligned, 0 behind them.

    Args:
        histories: Per row an int64 tensor of shape ``(n,)``, n ≥ 1, of item indices from 0.
        length: Number of columns, at least 1; longer histories lose their oldest items.

    Returns:
        Int64, shape ``(rows, length)``: item indices plus 1, so that 0 is padding only.

    Raises:
        DataError: If ``length`` is below 1, or a history is empty, not a vector of int64, or holds
            a negative index; the message names the row.
    """
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
    """Mark which items each history holds.

    Args:
        histories: Per row an int64 tensor of shape ``(n,)`` of item indices; n may be 0.
        num_items: Number of items in the catalogue.

    Returns:
        Bool, shape ``(rows, num_items)``, on the device of the histories.

    Raises:
        DataError: If a history is not a vector of int64 or holds an index outside
            0 … ``num_items`` - 1; the message names the row.
    """
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
