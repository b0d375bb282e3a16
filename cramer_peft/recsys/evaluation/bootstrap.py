"""Percentile intervals by a bootstrap over users, for means, differences, ratios and other functions of means.

Users are drawn with replacement. All values of one user stay together, so two methods are compared on the same drawn
users. Values of several seeds are averaged per user first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft.errors import DataError

SAMPLES = 2000
_CELLS = 2**22  # size of one block of drawn counts


@dataclass(frozen=True)
class Interval:
    """The value on all users, and the ends of the interval around it."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """Return the interval as JSON files hold it: ``{"value", "low", "high"}``."""
        return {"value": self.estimate, "low": self.low, "high": self.high}


def resampled_means(values: Tensor, samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """Return the means of values (users,) or (users, columns) over resamples of all users, float64 on the CPU.

    Equal seeds and numbers of users draw the same users. The result is (samples,) or (samples, columns).
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
    values: Tensor, statistic: Callable[[Tensor], Tensor], level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Return the interval of a statistic of the means of values (users, columns).

    ``statistic`` maps means (n, columns) to (n,), row by row; ``level`` is the share of the resampled values inside.

    Raises:
        DataError: If there are no users, a value or the statistic on all users or a resample is not finite or NaN, or
            ``level`` is not between 0 and 1.
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
    # interpolation would turn an infinite ratio among the resamples into NaN
    low, high = torch.quantile(resampled, ends, interpolation="nearest").tolist()
    return Interval(estimate, low, high)


def mean_interval(values: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> Interval:
    """Return the interval of the mean of values (users,); the rest is as for :func:`statistic_interval`."""
    return statistic_interval(_columns(values), lambda means: means[:, 0], level, samples, seed)


def difference_interval(
    first: Tensor, second: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Return the interval of the mean of ``first`` minus that of ``second``, (users,) each, of the same users."""
    return statistic_interval(_columns(first, second), lambda means: means[:, 0] - means[:, 1], level, samples, seed)


def ratio_interval(
    first: Tensor, second: Tensor, level: float = 0.95, samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """Return the interval of the mean of ``first`` over that of ``second``, (users,) each, of the same users.

    A DataError says, too, that the mean of ``second`` is 0 on all users.
    """
    columns = _columns(first, second)
    if float(columns[:, 1].mean()) == 0:
        raise DataError("the mean of the second values is 0, so there is no ratio to it. Use the difference.")
    return statistic_interval(columns, lambda means: means[:, 0] / means[:, 1], level, samples, seed)


def _columns(*values: Tensor) -> Tensor:
    shapes = [tuple(value.shape) for value in values]
    if any(len(shape) != 1 for shape in shapes) or len(set(shapes)) > 1:
        raise DataError(f"found values of shapes {shapes}, expected (users,) for each, the same users.")
    return torch.stack([value.detach().cpu().double() for value in values], dim=1)
