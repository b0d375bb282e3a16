"""The steps of a catalogue's numbers, as features: an exact range of years or prices is then a sum of features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import POPULARITY

_MOST_STEPS = 128  # of one column; more values than that share steps that hold equally many items
_POPULARITY_STEPS = 16  # fewer, because nobody asks for an exact number of visits


def steps_of(numbers: Mapping[str, Tensor], items: int, described: int) -> Tensor:
    """Return which step of each number column each item is on, (items, steps) float32; zeros where it is unknown.

    Args:
        numbers: The columns, (items,) float64 each, NaN where unknown.
        items: Number of items.
        described: The first so many items decide on the steps.
    """
    steps = {name: _POPULARITY_STEPS if name == POPULARITY else _MOST_STEPS for name in numbers}
    parts = [_steps(column, described, steps[name]) for name, column in numbers.items()]
    return torch.cat([torch.zeros(items, 0), *parts], dim=1)


def _steps(column: Tensor, described: int, most: int) -> Tensor:
    known = ~column.isnan()
    values = column[:described][known[:described]]
    distinct = values.unique()
    if len(distinct) > most:
        shares = torch.arange(1, most, dtype=torch.float64) / most
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
