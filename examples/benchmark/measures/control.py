"""Metrics of control that only the benchmark reports: distinctness, strength, and spill-over.

They give one value per user. The formulas are in ``docs/protocol.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cramer_peft.errors import DataError

_PAIR_BATCH = 1024


def spearman(strengths: Tensor, values: Tensor) -> Tensor:
    """Spearman's rank correlation of values with the strengths they were measured at; equal values share ranks.

    Args:
        strengths: (n,), two or more and not all equal.
        values: (..., n): a row per user, or the means over users.

    Returns:
        (...,) float64 in -1 … 1; 0 for a row that never changes, since it does not follow the strength.

    Raises:
        DataError: If the last dimensions differ, ``strengths`` has fewer than two different values, or there is NaN.
    """
    if strengths.dim() != 1 or values.shape[-1:] != strengths.shape:
        raise DataError(
            f"found strengths of shape {tuple(strengths.shape)} and values of shape {tuple(values.shape)}, "
            "expected (n,) and (..., n)."
        )
    if bool(strengths.isnan().any()) or bool(values.isnan().any()):
        raise DataError("the strengths or the values hold NaN: it has no rank.")
    if len(strengths.unique()) < 2:
        raise DataError("strengths: expected two or more different values.")
    first, second = _centred_ranks(strengths), _centred_ranks(values)
    scale = (first.square().sum() * second.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (first * second).sum(-1) / scale.clamp(min=1e-300), torch.zeros_like(scale))


def _centred_ranks(values: Tensor) -> Tensor:
    above = (values[..., :, None] > values[..., None, :]).sum(-1, dtype=torch.float64)
    same = (values[..., :, None] == values[..., None, :]).sum(-1, dtype=torch.float64)
    ranks = above + same / 2
    return ranks - ranks.mean(-1, keepdim=True)


def distinctness(top: Tensor) -> Tensor:
    """1 - the mean Jaccard similarity of each user's list with those of the others under the same request.

    0: all get one list. 1: no two lists share an item.

    Args:
        top: (users, k) item indices, without repeats in a row; two users or more.

    Returns:
        (users,) float32. A mean over pairs varies twice as much as these means of it suggest: take
        :func:`pair_influence` of them for an interval.

    Raises:
        DataError: If there are fewer than two users.
    """
    users, k = top.shape
    if users < 2:
        raise DataError(f"found {users} list(s), expected two or more to compare.")
    items = torch.zeros(users, int(top.max()) + 1, device=top.device).scatter_(1, top, 1.0)
    total = torch.empty(users, device=top.device)
    for start in range(0, users, _PAIR_BATCH):
        common = items[start : start + _PAIR_BATCH] @ items.T
        similarity = common / (2 * k - common)
        total[start : start + _PAIR_BATCH] = similarity.sum(1) - 1  # without the list's similarity with itself
    return 1 - total / (users - 1)


def pair_influence(means: Tensor) -> Tensor:
    """Values per user with the mean of ``means``, whose spread is that of a mean over all pairs of users.

    Each user is in two places of the pairs, so a deviation from the mean counts twice.

    Args:
        means: Per user the mean over all pairs with that user, (users,).
    """
    return 2 * means - means.mean()


def attribute_shares(top: Tensor, item_attributes: Tensor) -> Tensor:
    """Share of each list that has each attribute, (rows, attributes) float.

    Args:
        top: (rows, k) item indices.
        item_attributes: (items, attributes) bool.
    """
    return item_attributes[top].float().mean(1)


def spill_over(before: Tensor, after: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Mean change of every attribute's share, by the attribute that was asked for.

    Args:
        before: Shares of the frozen lists, (users, attributes), by :func:`attribute_shares`.
        after: Shares of the lists under the requests.
        asked: Column of the attribute that each user's request names, (users,) int64.

    Returns:
        The matrix (attributes, attributes): row i holds the mean of after - before over those who named attribute
        i, NaN where nobody did; and how many they were, (attributes,) int64.

    Raises:
        DataError: If shapes do not fit or ``asked`` holds an index that is no column.
    """
    _check_shapes(before=before, after=after)
    users, attributes = before.shape
    if asked.shape != (users,) or (users and not 0 <= int(asked.min()) <= int(asked.max()) < attributes):
        raise DataError(f"asked: expected {users} columns in 0 … {attributes - 1}, found {tuple(asked.shape)} of them.")
    count = torch.bincount(asked, minlength=attributes)
    total = torch.zeros(attributes, attributes, dtype=before.dtype, device=before.device)
    total.index_add_(0, asked, after - before)
    return total / count[:, None], count


def _check_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"shapes differ: {shapes}. Expected one value per user in each.")
