"""Rank the next item among 100 random items that the user has not met, as the paper does."""

from __future__ import annotations

import torch
from torch import Tensor

from cramer_peft.recsys.evaluation.metrics import target_ranks

NEGATIVES = 100


def drawn_negatives(seen: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return 100 random unseen items for each row, (rows, 100) int64, and which of them count, bool.

    Args:
        seen: Items that each user has met, (rows, items) bool.
        targets: The next items, (rows,) int64; they are not drawn.
        seed: Seed of the draws.
    """
    drawn = torch.rand(seen.shape, generator=torch.Generator().manual_seed(seed))
    drawn = drawn.masked_fill(seen, -1).scatter_(1, targets[:, None], -1)
    found = drawn.topk(min(NEGATIVES, seen.shape[1] - 1), dim=1)
    return found.indices, found.values >= 0


def sampled_ranks(scores: Tensor, targets: Tensor, negatives: tuple[Tensor, Tensor]) -> Tensor:
    """Return the rank of each target among its negatives, (rows,).

    Args:
        scores: Scores of the whole catalogue, (rows, items).
        targets: The next items, (rows,) int64.
        negatives: Return value of :func:`drawn_negatives`.
    """
    indices, there = negatives
    others = scores.gather(1, indices).masked_fill(~there, -torch.inf)
    listed = torch.cat([scores.gather(1, targets[:, None]), others], dim=1)
    return target_ranks(listed, torch.zeros(len(listed), dtype=torch.long))
