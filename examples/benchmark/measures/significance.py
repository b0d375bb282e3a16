"""Paired tests of means over users, and their correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cramer_peft.errors import DataError

FLIPS = 9999
_CELLS = 2**22  # of one block of drawn signs


def paired_p(first: Tensor, second: Tensor, flips: int = FLIPS, seed: int = 0) -> float:
    """Return the two-sided p of a paired permutation test, which flips the signs of the differences at random.

    Args:
        first: A value per user, (users,), finite.
        second: The same users' values of the other method.
        flips: Random draws of signs; the smallest p is 1 / (flips + 1).
        seed: Of the draws.

    Raises:
        DataError: If there are no users, their numbers differ, or a value is not finite.
    """
    if first.shape != second.shape or first.dim() != 1 or not len(first):
        raise DataError(f"found values of shapes {tuple(first.shape)} and {tuple(second.shape)}, expected (users,).")
    difference = (first - second).double().cpu()
    if not bool(torch.isfinite(difference).all()):
        raise DataError("a value is not finite. Leave out users who do not count.")
    difference = difference[difference != 0]  # a sign changes nothing there
    if not len(difference):
        return 1.0
    found = float(difference.sum().abs()) * (1 - 1e-12)
    generator, beyond = torch.Generator().manual_seed(seed), 0
    rows = max(1, _CELLS // len(difference))
    for start in range(0, flips, rows):
        count = min(rows, flips - start)
        signs = torch.randint(2, (count, len(difference)), generator=generator).double() * 2 - 1
        beyond += int(((signs @ difference).abs() >= found).sum())
    return (beyond + 1) / (flips + 1)


def adjusted(values: Sequence[float]) -> list[float]:
    """Return p values after Benjamini and Hochberg: below .05, one in twenty of those is expected to be a chance find.

    Args:
        values: The p values of all tests that are reported together, in any order; the result has the same order.
    """
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    found, least = [1.0] * len(values), 1.0
    for place, index in enumerate(order):
        least = min(least, values[index] * len(values) / (len(values) - place))
        found[index] = least
    return found
