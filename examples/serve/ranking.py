"""The best items of a row, in an order that does not depend on the rest of the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def best_items(scores: Tensor, k: int) -> list[int]:
    """The k best items, best first; of equal scores the lower index comes first.

    Args:
        scores: (items,); items that must not be recommended hold -inf.
        k: Length of the list; it is shorter where fewer items may be recommended.

    Raises:
        ValueError: If a score is NaN.
    """
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN: the model is broken, or its weights are.")
    k = min(k, int((scores > -torch.inf).sum()))
    last = torch.topk(scores, k).values[-1] if k else torch.inf
    candidates = (scores >= last).nonzero().flatten()  # more than k where the last score is shared
    order = torch.sort(scores[candidates], descending=True, stable=True).indices
    return [int(index) for index in candidates[order][:k].tolist()]
