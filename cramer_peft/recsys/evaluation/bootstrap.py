"""Percentile intervals by a bootstrap over users: of a mean, of a difference, of a ratio, of any function of means.

Users are drawn with replacement; whatever belongs to one user stays together, so two methods are compared on the
same drawn users. Values of several seeds are averaged per user first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft.errors import DataError

SAMPLES = 2000
_CELLS = 2**22  # of one block of drawn counts


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it.

    Attributes:
        estimate: The value on all users.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled_means(values: Tensor, samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """Means of each column over drawn users.

    Args:
        values: (users,) or (users, columns); a user's row is drawn whole.
        samples: How many times as many users as there are, are drawn with replacement.
        seed: Of the draws; the same seed and number of users draw the same users.

    Returns:
        (samples,) or (samples, columns), float64, on the CPU.

    Raises:
        DataError: If there are no users, a value is not finite, or ``samples`` is below 1.
    """
    if values.dim() not in (1, 2) or not len(values):
        raise DataError(f"values: found shape {tuple(values.shape)}, expected (users,) or (users, columns), not empty.")
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero()[0])
        raise DataError(f"values: row {row} is not finite. Leave out users who do not count, rather than mark them.")
    if samples < 1:
        raise DataError(f"samples: found {samples}, expected 1 or more.")
    users = len(values)
    matrix = values.detach().cpu().double().reshape(users, -1)
    generator = torch.Generator().manual_seed(seed)
    block = max(1, min(samples, _CELLS // users))
    means = []
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = torch.randint(users, (rows, users), generator=generator)
        counts = torch.zeros(rows, users, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(rows, users, dtype=torch.float64)
        )
        means.append(counts @ matrix / users)
    return torch.cat(means).reshape(samples, *values.shape[1:])


def statistic_interval(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor],
    level: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of a function of the means of several columns.

    Args:
        values: (users, columns).
        statistic: From means (n, columns) to (n,), row by row.
        level: Share of the resampled values inside the interval.
        samples: Number of resamples.
        seed: Of the draws.

    Raises:
        DataError: As for :func:`resampled_means`; also if ``level`` is not between 0 and 1, or the statistic is
            undefined (NaN) on all users or on a resample.
    """
    if not 0 < level < 1:
        raise DataError(f"level: found {level}, expected a number between 0 and 1.")
    resampled = statistic(resampled_means(values, samples, seed))
    estimate = float(statistic(values.detach().cpu().double().mean(0, keepdim=True))[0])
    undefined = int(resampled.isnan().sum())
    if undefined or math.isnan(estimate):
        raise DataError(
            f"the statistic is undefined on {undefined} of {samples} resamples of {len(values)} users: "
            "too few of them count. Choose another statistic or more users."
        )
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    # nearest: an infinite ratio among the resamples must not turn the others into NaN
    low, high = torch.quantile(resampled, ends, interpolation="nearest").tolist()
    return Interval(estimate, low, high)


def mean_interval(values: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Interval of the mean over users.

    Args:
        values: (users,).
        level: Share of the resampled values inside the interval.
        samples: Number of resamples.
        seed: Of the draws.

    Raises:
        DataError: As for :func:`statistic_interval`.
    """
    return statistic_interval(_columns(values), lambda means: means[:, 0], level, samples, seed)


def difference_interval(
    first: Tensor, second: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Interval of the mean of ``first`` minus that of ``second``, two methods on the same users.

    Args:
        first: (users,).
        second: (users,), in the same order of users.
        level: Share of the resampled values inside the interval.
        samples: Number of resamples.
        seed: Of the draws.

    Raises:
        DataError: As for :func:`statistic_interval`; also if the numbers of users differ.
    """
    return statistic_interval(_columns(first, second), lambda means: means[:, 0] - means[:, 1], level, samples, seed)


def ratio_interval(
    first: Tensor, second: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Interval of the mean of ``first`` over that of ``second`` on the same users.

    Args:
        first: (users,).
        second: (users,), in the same order of users.
        level: Share of the resampled values inside the interval.
        samples: Number of resamples.
        seed: Of the draws.

    Raises:
        DataError: As for :func:`statistic_interval`; also if the numbers of users differ, or the mean of
            ``second`` is 0 on all users.
    """
    columns = _columns(first, second)
    if float(columns[:, 1].mean()) == 0:
        raise DataError("the mean of the second values is 0: there is no ratio to it. Look at the difference.")
    return statistic_interval(columns, lambda means: means[:, 0] / means[:, 1], level, samples, seed)


def _columns(*values: Tensor) -> Tensor:
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) != 1 for shape in shapes) or len(set(shapes)) > 1:
        raise DataError(f"found values of shapes {shapes}, expected (users,) for each, the same users.")
    return torch.stack([value.detach().cpu().double() for value in values], dim=1)
