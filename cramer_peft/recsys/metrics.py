"""Metrics of ranking and of control, over the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from cramer_peft.errors import DataError


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """Rank of each row's target, from 1; items that score the same share the middle of their ranks.

    Args:
        scores: (rows, items); items that must not be recommended hold -inf.
        targets: (rows,) int64 item indices.

    Returns:
        (rows,) float; a target that itself holds -inf ranks last.
    """
    own = scores.gather(1, targets[:, None])
    above = (scores > own).sum(1)
    same = (scores == own).sum(1) - 1
    ranks = 1 + above + same / 2
    return torch.where(torch.isfinite(own[:, 0]), ranks, torch.full_like(ranks, scores.shape[1]))


def hit_rate(ranks: Tensor, k: int = 10) -> Tensor:
    """HR@k per row: 1 where the target is among the first k."""
    return (ranks <= k).float()


def ndcg(ranks: Tensor, k: int = 10) -> Tensor:
    """NDCG@k per row with one relevant item: 1 / log2(1 + rank) where rank ≤ k, else 0."""
    return torch.where(ranks <= k, 1 / torch.log2(1 + ranks), torch.zeros_like(ranks))


def mrr(ranks: Tensor, k: int = 10) -> Tensor:
    """MRR@k per row: 1 / rank where rank ≤ k, else 0."""
    return torch.where(ranks <= k, 1 / ranks, torch.zeros_like(ranks))


def top_items(scores: Tensor, seen: Tensor, k: int = 10) -> Tensor:
    """The k best items of each row that it has not seen, (rows, k) int64, best first.

    Args:
        scores: (rows, items).
        seen: (rows, items) bool.

    Raises:
        DataError: If a row has fewer than k unseen items.
    """
    unseen = (~seen).sum(1)
    if bool((unseen < k).any()):
        row = int((unseen < k).nonzero()[0])
        raise DataError(f"row {row} has {int(unseen[row])} unseen items, expected {k} or more to recommend from.")
    return scores.masked_fill(seen, -torch.inf).topk(k, dim=1).indices


def share(top: Tensor, flags: Tensor) -> Tensor:
    """Share of each row's top items that are flagged, (rows,) float.

    With the items that satisfy a row's request this is satisfaction@k; with those that have what it
    excludes, violation@k; with those that have an attribute, the attribute's share.

    Args:
        top: (rows, k) item indices.
        flags: (rows, items) bool.
    """
    return flags.gather(1, top).float().mean(1)


def overlap(top: Tensor, reference: Tensor) -> Tensor:
    """Overlap@k per row: share of ``top``'s items, (rows, k), that are in ``reference``'s, (rows, k)."""
    return (top[:, :, None] == reference[:, None, :]).any(2).float().mean(1)
