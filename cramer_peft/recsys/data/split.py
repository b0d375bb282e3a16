"""Splits of users' sequences, by position and by time, and the tensors that models and metrics take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.interactions import Interactions

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


@dataclass(frozen=True)
class Counted:
    """Who is counted in one stage of a temporal split, and why the others are not.

    Args:
        users: Users who are counted.
        no_target: Users left out because they have no item in the stage's part of the timeline.
        short_history: Users left out because they have an item there, but too few before the cut.
        tied_targets: Rows whose target shares its time with another item of the same user, so that
            only the order of the file's lines makes it the target.
    """

    users: int
    no_target: int
    short_history: int
    tied_targets: int


@dataclass(frozen=True, eq=False)
class TemporalSplit(Split):
    """A split of one timeline for all users; it serves wherever a :class:`Split` does.

    Unlike in a leave-one-out split, ``train`` and the two stages have different users each. A stage has a row
    for each target, and several rows of one user follow one another.

    Args:
        train: Per training user the items before the first cut; users with fewer than two are left out.
        validation_target: Int64, shape ``(validation rows,)``.
        test_target: Int64, shape ``(test rows,)``.
        validation_history: Per validation row all earlier items of its user.
        test_history: Per test row all earlier items of its user.
        train_users: Int64: each training user's index in ``Interactions.user_ids``.
        validation_users: The same for each validation row.
        test_users: The same for each test row.
        cuts: The timestamps at which validation and test begin.
        validation: Who is counted in validation.
        test: Who is counted in the test.
    """

    validation_history: tuple[Tensor, ...]
    test_history: tuple[Tensor, ...]
    train_users: Tensor
    validation_users: Tensor
    test_users: Tensor
    cuts: tuple[float, float]
    validation: Counted
    test: Counted

    def history(self, stage: Stage) -> tuple[Tensor, ...]:
        """Return what is known before each target of ``stage``.

        Args:
            stage: "validation" or "test".

        Raises:
            DataError: If ``stage`` is neither.
        """
        if stage == "validation":
            return self.validation_history
        if stage == "test":
            return self.test_history
        raise DataError(f"stage: found {stage!r}, expected 'validation' or 'test'.")


def temporal_split(
    interactions: Interactions,
    quantiles: tuple[float, float] = (0.8, 0.9),
    min_history: int = 2,
    targets: int = 1,
) -> TemporalSplit:
    """Split all users' interactions at two moments of one timeline, so that nothing of the future is fitted.

    The interactions of all users are put in one order by time; with n of them and quantile q, the cut is the time
    of number ⌊q·n⌋, counted from 0. **What has exactly the time of a cut is after it**, so equal times are never
    torn apart, and the part before a cut holds at most the share q. Training is what is before the first cut,
    validation what is before the second, the test the rest.

    A stage counts the users who have ``min_history`` items or more before the stage's cut and at least one in the
    stage. Their targets are their first ``targets`` items there; each is to be predicted from all of the user's items
    before it. Between items of a user with equal times **the order of the file's lines** decides, as in
    :func:`~cramer_peft.recsys.data.interactions.load_interactions`; ``tied_targets`` says how often it did.

    Args:
        interactions: All users, with their times, loaded with ``min_interactions=1``: to drop users with few
            interactions is to look at their future.
        quantiles: Shares of the interactions before validation and before the test.
        min_history: Items a counted user has before the cut, at least 1. With 2, as in leave-one-out, where the
            test has two items or more before it.
        targets: Targets for each counted user and stage, at least 1; a user with fewer items there has fewer.

    Raises:
        DataError: If an argument is impossible, users were dropped, the times are missing or decrease, they are
            positions in each user's sequence instead of times, or a part has nobody in it.
    """
    _check_temporal(interactions, quantiles, min_history, targets)
    cuts = _cut_times(interactions, quantiles)
    befores = torch.tensor(
        [[int((times < cut).sum()) for cut in cuts] for times in interactions.times], dtype=torch.long
    )  # items before each cut: (users, 2)
    lengths = torch.tensor([len(sequence) for sequence in interactions.sequences])
    train_users = (befores[:, 0] >= 2).nonzero().flatten()  # one item alone has no next item to learn from
    if not len(train_users):
        raise DataError(f"{_name(interactions)}: no user has two items before {cuts[0]}. Raise the quantiles.")
    validation = _stage(interactions, "validation", befores[:, 0], befores[:, 1], min_history, targets)
    test = _stage(interactions, "test", befores[:, 1], lengths, min_history, targets)
    return TemporalSplit(
        train=tuple(interactions.sequences[user][: befores[user, 0]] for user in train_users.tolist()),
        validation_target=validation.target,
        test_target=test.target,
        validation_history=validation.history,
        test_history=test.history,
        train_users=train_users,
        validation_users=validation.users,
        test_users=test.users,
        cuts=cuts,
        validation=validation.counted,
        test=test.counted,
    )


@dataclass(frozen=True, eq=False)
class _StageRows:
    history: tuple[Tensor, ...]
    target: Tensor
    users: Tensor
    counted: Counted


def _name(interactions: Interactions) -> str:
    return interactions.source or "interactions"


def _check_temporal(interactions: Interactions, quantiles: tuple[float, float], min_history: int, targets: int) -> None:
    for name, value in (("min_history", min_history), ("targets", targets)):
        if value < 1:
            raise DataError(f"{name}: found {value}, expected 1 or more.")
    if not 0 < quantiles[0] < quantiles[1] < 1:
        raise DataError(f"quantiles: found {quantiles}, expected two rising numbers between 0 and 1.")
    if not interactions.sequences:
        raise DataError("There are no users to split. Load interactions of at least one user.")
    name = _name(interactions)
    if interactions.dropped_users:
        raise DataError(
            f"{name}: {interactions.dropped_users} users were left out for too few interactions, which counts those "
            "of the future. Load with min_interactions=1; min_history says who is counted."
        )
    if not interactions.times:
        raise DataError(f"{name}: the times of the interactions are not known. Use leave_one_out.")
    for user_id, times in zip(interactions.user_ids, interactions.times, strict=True):
        if not len(times):
            raise DataError(f"{name}: user_id {user_id!r} has no items. Leave out such users.")
        if (times[1:] < times[:-1]).any():
            raise DataError(f"{name}: the times of user_id {user_id!r} decrease. Sort each user's items by time.")
    _refuse_positions(interactions)


def _refuse_positions(interactions: Interactions) -> None:
    """Positions in each user's sequence start at one number for everybody; moments do not."""
    starts = torch.stack([times[0] for times in interactions.times])
    values, counts = starts.unique(return_counts=True)
    most = int(counts.argmax())
    alone = len(starts) == 1 and not _is_counting(interactions.times[0])
    if 2 * int(counts[most]) > len(starts) and not alone:
        raise DataError(
            f"{_name(interactions)}: {int(counts[most])} of {len(starts)} users start at the timestamp "
            f"{float(values[most]):g}. These are positions in each user's sequence, not times, so there is no timeline "
            "to cut. Use leave_one_out."
        )


def _is_counting(times: Tensor) -> bool:
    return float(times[0]) in (0.0, 1.0) and bool((times[1:] - times[:-1] == 1).all())


def _cut_times(interactions: Interactions, quantiles: tuple[float, float]) -> tuple[float, float]:
    timeline = torch.cat(interactions.times).sort().values
    first, second = (float(timeline[int(quantile * len(timeline))]) for quantile in quantiles)
    moments = (float(timeline[0]), first, second)
    if any(left == right for left, right in pairwise(moments)):
        raise DataError(
            f"{_name(interactions)}: the timeline of {len(timeline)} interactions starts at {moments[0]:.17g} and is "
            f"cut at {first:.17g} and {second:.17g}; a part between equal times is empty. Choose other quantiles."
        )
    return first, second


def _stage(
    interactions: Interactions, stage: Stage, starts: Tensor, ends: Tensor, min_history: int, targets: int
) -> _StageRows:
    """Rows of one stage, whose part of each user's sequence is ``starts`` to ``ends``; both (users,)."""
    present, known = ends > starts, starts >= min_history
    counted = (present & known).nonzero().flatten().tolist()
    if not counted:
        raise DataError(
            f"{_name(interactions)}: no user has an item in {stage} and {min_history} or more before it. Lower "
            "min_history or choose other quantiles."
        )
    first, last = starts.tolist(), ends.tolist()
    rows = [(user, at) for user in counted for at in range(first[user], min(first[user] + targets, last[user]))]
    return _StageRows(
        history=tuple(interactions.sequences[user][:at] for user, at in rows),
        target=torch.stack([interactions.sequences[user][at] for user, at in rows]),
        users=torch.tensor([user for user, _ in rows], dtype=torch.long),
        counted=Counted(
            users=len(counted),
            no_target=int((~present).sum()),
            short_history=int((present & ~known).sum()),
            tied_targets=sum(_is_tied(interactions.times[user], at) for user, at in rows),
        ),
    )


def _is_tied(times: Tensor, position: int) -> bool:
    return int((times == times[position]).sum()) > 1


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
