"""Splits of users' sequences into training, validation and test: leave-one-out, or by time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.interactions import Interactions

Stage = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """A leave-one-out split: the last item is the test target, the one before it the validation target."""

    train: tuple[Tensor, ...]  # per user all items but the last two, (length,) int64
    validation_target: Tensor  # (users,) int64
    test_target: Tensor  # (users,) int64

    def history(self, stage: Stage) -> tuple[Tensor, ...]:
        """Return each user's items before the target of ``stage``: for "test" also the validation target."""
        if _is_test(stage):
            targets = self.validation_target.unsqueeze(1)
            return tuple(torch.cat(pair) for pair in zip(self.train, targets, strict=True))
        return self.train

    def target(self, stage: Stage) -> Tensor:
        """Return the target of each row of ``stage``, (rows,) int64."""
        return self.test_target if _is_test(stage) else self.validation_target

    def users(self, stage: Stage) -> Tensor:
        """Return the user of each row of ``stage``, an index into ``Interactions.user_ids``, (rows,) int64."""
        return torch.arange(len(self.target(stage)))


def _is_test(stage: Stage) -> bool:
    if stage not in ("validation", "test"):
        raise DataError(f"stage: found {stage!r}, expected 'validation' or 'test'.")
    return stage == "test"


def leave_one_out(interactions: Interactions) -> Split:
    """Split every user's sequence, of three items or more, into training items, a validation and a test target.

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
    """Numbers of the users that one stage of a temporal split counts and leaves out."""

    users: int
    no_target: int  # users without an item in the stage
    short_history: int  # users with too few items before it
    tied_targets: int  # rows whose target only the order of the file's lines tells from another item of its time


@dataclass(frozen=True, eq=False)
class TemporalSplit(Split):
    """A split of one timeline for all users, cut at the two times ``cuts``; ``*_users`` are the rows' users, int64.

    A stage has a row for each target, with all earlier items of the user as history; rows of a user follow one another.
    """

    validation_history: tuple[Tensor, ...]
    test_history: tuple[Tensor, ...]
    train_users: Tensor
    validation_users: Tensor
    test_users: Tensor
    cuts: tuple[float, float]  # int if the times are
    validation: Counted
    test: Counted

    def history(self, stage: Stage) -> tuple[Tensor, ...]:
        return self.test_history if _is_test(stage) else self.validation_history

    def users(self, stage: Stage) -> Tensor:
        return self.test_users if _is_test(stage) else self.validation_users


def temporal_split(
    interactions: Interactions, quantiles: tuple[float, float] = (0.8, 0.9), min_history: int = 2, targets: int = 1
) -> TemporalSplit:
    """Split all users' interactions at two moments of one timeline, so that training sees nothing of the future.

    With n interactions, sorted by time, and quantile q, the cut is the time of number ⌊q·n⌋, counted from 0. **An
    interaction at exactly the time of a cut is after it**, so equal times stay together. Training is the part before
    the first cut, validation the part before the second, the test the rest.

    A stage counts the users with ``min_history`` items or more before it and at least one in it. Their first
    ``targets`` items there are to be predicted, each from all of the user's items before it. Between items of a user
    with equal times **the order of the file's lines** decides; ``tied_targets`` counts those rows.

    Args:
        interactions: All users, with their times. Load them with ``min_interactions=1``: dropping users with few
            interactions would look at their future.
        quantiles: Shares of the interactions before validation and before the test.
        min_history: Fewest items of a counted user before the cut, at least 1.
        targets: Targets for each counted user and stage, at least 1; a user with fewer items there has fewer.

    Raises:
        DataError: If an argument is impossible, users were dropped, the times are missing or decrease, they are
            positions in each user's sequence instead of times, or a part has no users.
    """
    _check_temporal(interactions, quantiles, min_history, targets)
    cuts = _cut_times(interactions, quantiles)
    befores = torch.tensor(
        [[int((times < cut).sum()) for cut in cuts] for times in interactions.times], dtype=torch.long
    )  # items before each cut: (users, 2)
    lengths = torch.tensor([len(sequence) for sequence in interactions.sequences])
    train_users = (befores[:, 0] >= 2).nonzero().flatten()  # a single item has no next item to learn
    if not len(train_users):
        raise DataError(f"{_name(interactions)}: no user has two items before {cuts[0]}. Raise the quantiles.")
    return TemporalSplit(
        train=tuple(interactions.sequences[user][: befores[user, 0]] for user in train_users.tolist()),
        train_users=train_users,
        cuts=cuts,
        **_stage(interactions, "validation", befores[:, 0], befores[:, 1], min_history, targets),
        **_stage(interactions, "test", befores[:, 1], lengths, min_history, targets),
    )


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
    """Raise a DataError if most users start at the same time: then the times are positions in each sequence."""
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
    # item() keeps whole numbers whole: float64 would round nanoseconds
    moments = [timeline[int(quantile * len(timeline))].item() for quantile in (0, *quantiles)]
    if any(left == right for left, right in pairwise(moments)):
        raise DataError(
            f"{_name(interactions)}: the timeline of {len(timeline)} interactions starts at {moments[0]:.17g} and is "
            f"cut at {moments[1]:.17g} and {moments[2]:.17g}; a part between equal times is empty. Choose other "
            "quantiles."
        )
    return moments[1], moments[2]


def _stage(
    interactions: Interactions, stage: Stage, starts: Tensor, ends: Tensor, min_history: int, targets: int
) -> dict[str, Any]:
    """Return a stage's fields of the split; its part of each sequence is ``starts`` to ``ends``, (users,) each."""
    present, known = ends > starts, starts >= min_history
    counted = (present & known).nonzero().flatten().tolist()
    if not counted:
        raise DataError(
            f"{_name(interactions)}: no user has an item in {stage} and {min_history} or more before it. Lower "
            "min_history or choose other quantiles."
        )
    first, last = starts.tolist(), ends.tolist()
    rows = [(user, at) for user in counted for at in range(first[user], min(first[user] + targets, last[user]))]
    tied = sum(int((interactions.times[user] == interactions.times[user][at]).sum()) > 1 for user, at in rows)
    return {
        f"{stage}_history": tuple(interactions.sequences[user][:at] for user, at in rows),
        f"{stage}_target": torch.stack([interactions.sequences[user][at] for user, at in rows]),
        f"{stage}_users": torch.tensor([user for user, _ in rows], dtype=torch.long),
        stage: Counted(len(counted), int((~present).sum()), int((present & ~known).sum()), tied),
    }
