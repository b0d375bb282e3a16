"""The best items of each row, in an order that does not depend on the rest of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_items(scores: Tensor, ks: Sequence[int]) -> list[list[int]]:
    """The best items of each row, best first; of equal scores the lower index comes first.

    Args:
        scores: (rows, items); items that must not be recommended hold -inf.
        ks: Length of each row's list; it is shorter where fewer items may be recommended.

    Raises:
        ValueError: If a score is NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN: the model is broken, or its weights are.")
    # One more than asked for, to see whether the last score is shared.
    top = scores.topk(min(max(ks) + 1, scores.shape[1]), dim=1)
    rows = zip(top.values.tolist(), top.indices.tolist(), ks, strict=True)
    return [
        _all_in_order(scores[row], k) if k < len(values) and values[k - 1] == values[k] else _in_order(values, items, k)
        for row, (values, items, k) in enumerate(rows)
    ]


def _in_order(values: list[float], items: list[int], k: int) -> list[int]:
    pairs = sorted((-value, item) for value, item in zip(values[:k], items[:k], strict=True))
    return [item for value, item in pairs if value < torch.inf]


def _all_in_order(scores: Tensor, k: int) -> list[int]:
    """One row's, where no part of it is enough to know the order."""
    order = torch.sort(scores, descending=True, stable=True).indices[:k]
    return [int(item) for item in order[scores[order] > -torch.inf].tolist()]
