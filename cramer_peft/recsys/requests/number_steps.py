"""The steps of a catalogue's numbers, as features: an exact range of years or prices is then a sum of features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_MOST_STEPS = 128  # of one column; more values than that share steps that hold equally many items


def steps_of(numbers: Mapping[str, Tensor], items: int, described: int) -> Tensor:
    """Return which step of each number column each item is on, (items, steps) float32; zeros where it is unknown.

    Args:
        numbers: The columns, (items,) float64 each, NaN where unknown.
        items: Number of items.
        described: The first so many items decide on the steps.
    """
    parts = [_steps(column, described) for column in numbers.values()]
    return torch.cat([torch.zeros(items, 0), *parts], dim=1)


def _steps(column: Tensor, described: int) -> Tensor:
    known = ~column.isnan()
    values = column[:described][known[:described]]
    distinct = values.unique()
    if len(distinct) > _MOST_STEPS:
        shares = torch.arange(1, _MOST_STEPS, dtype=torch.float64) / _MOST_STEPS
        distinct = torch.quantile(values, shares).unique()
        places = torch.bucketize(column, distinct, right=True)
        count = len(distinct) + 1
    else:
        places = torch.bucketize(column, distinct).clamp(max=max(len(distinct) - 1, 0))
        count = len(distinct)
    rows = torch.zeros(len(column), count)
    if count:
        rows[known, places[known]] = 1
    return rows
