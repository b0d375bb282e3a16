"""Metrics of ranking and of lists, over the whole catalogue, one value per user.

Those of control are made of them in :mod:`cramer_peft.recsys.evaluation.control`.
"""

from __future__ import annotations

import math
from itertools import pairwise

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
    _check_room(seen, k)
    return scores.masked_fill(seen, -torch.inf).topk(k, dim=1).indices


def _check_room(seen: Tensor, k: int) -> None:
    unseen = (~seen).sum(1)
    if bool((unseen < k).any()):
        row = int((unseen < k).nonzero()[0])
        raise DataError(f"row {row} has {int(unseen[row])} unseen items, expected {k} or more to recommend from.")


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


def expected_share(scores: Tensor, seen: Tensor, flags: Tensor, k: int = 10) -> Tensor:
    """Share of each row's top k that is flagged, (rows,) float, where equal scores come in random order.

    It is :func:`share` of :func:`top_items` where no two scores are equal; where some are, it is the mean
    over all orders of them, so that a model cannot gain by scoring everything the same.

    Args:
        scores: (rows, items).
        seen: (rows, items) bool; these are never recommended.
        flags: (rows, items) bool.
        k: Length of the list.

    Raises:
        DataError: If a row has fewer than k unseen items, or a score is NaN.
    """
    _check_room(seen, k)
    if bool(scores.isnan().any()):
        row = int(scores.isnan().any(1).nonzero()[0])
        raise DataError(f"row {row} of the scores holds NaN: it cannot be ranked. Look at the model that gave it.")
    left = scores.masked_fill(seen, -torch.inf)
    last = left.topk(k, dim=1).values[:, -1:]
    above, tied = left > last, (left == last) & ~seen
    room = k - above.sum(1)
    return ((flags & above).sum(1) + room * (flags & tied).sum(1) / tied.sum(1)) / k


def mrr_interval(hr: float, ndcg: float, k: int = 10, ties: bool = False) -> tuple[float, float]:
    """Smallest and largest MRR@k that rankings with this HR@k and NDCG@k can have, one relevant item each.

    Every ranking adds (1, 1 / log2(1 + r), 1 / r) to the sums of HR, NDCG and MRR if its rank r is at most
    k, and nothing otherwise. 1 / r is a convex function of 1 / log2(1 + r): so the smallest mean lies on the
    lines between neighbouring ranks, the largest on the line between ranks 1 and k.

    Args:
        hr: HR@k, a mean over users.
        ndcg: NDCG@k of the same users.
        k: Length of the list.
        ties: Whether ranks may lie halfway between two, as middle ranks of equal scores do.

    Raises:
        DataError: If ``k`` is below 1, or no rankings have this HR and NDCG.
    """
    points = _rank_points(k, ties)
    if not (0 <= hr <= 1 and hr * points[-1][0] - 1e-12 <= ndcg <= hr + 1e-12):
        raise DataError(
            f"no rankings with one relevant item have HR@{k} {hr} and NDCG@{k} {ndcg}: expected an HR in 0 … 1 and "
            f"an NDCG in {points[-1][0]:.4f} … 1 times the HR."
        )
    chord, edges = _mrr_lines(points)
    low, high = (
        slope * ndcg + offset * hr for slope, offset in (max(edges, key=lambda e: e[0] * ndcg + e[1] * hr), chord)
    )
    return low, high


def is_possible(hr: float, ndcg: float, mrr: float, k: int = 10, tolerance: float = 1e-6, ties: bool = False) -> bool:
    """Whether rankings with one relevant item each can have these means of HR@k, NDCG@k and MRR@k.

    The answer is exact for means over any number of users: it decides whether the box of the three values
    ± ``tolerance`` meets the convex hull of what single ranks contribute (see :func:`mrr_interval`).

    Args:
        hr: HR@k.
        ndcg: NDCG@k.
        mrr: MRR@k.
        k: Length of the list.
        tolerance: How far each value may be off: 0.0005 for values printed with three decimals.
        ties: Whether ranks may lie halfway between two, as middle ranks of equal scores do.

    Raises:
        DataError: If ``k`` is below 1 or ``tolerance`` is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise DataError(f"tolerance: found {tolerance}, expected a finite number from 0.")
    points = _rank_points(k, ties)
    if not all(map(math.isfinite, (hr, ndcg, mrr))):
        return False
    chord, edges = _mrr_lines(points)
    # half-planes (a, b, c) of the (HR, NDCG) for which some MRR in the box is possible: a HR + b NDCG + c >= 0
    planes = [(1.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (1.0, -1.0, 0.0), (-points[-1][0], 1.0, 0.0)]
    planes += [(-offset, -slope, mrr + tolerance) for slope, offset in edges]
    planes.append((chord[1], chord[0], tolerance - mrr))
    polygon = [(hr + i * tolerance, ndcg + j * tolerance) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    for plane in planes:
        polygon = _clip(polygon, plane)
    return bool(polygon)


def _rank_points(k: int, ties: bool) -> list[tuple[float, float]]:
    """(NDCG, MRR) of a single ranking for each rank up to k."""
    if k < 1:
        raise DataError(f"k: found {k}, expected 1 or more.")
    ranks = [1 + step / 2 for step in range(2 * k - 1)] if ties else range(1, k + 1)
    return [(1 / math.log2(1 + rank), 1 / rank) for rank in ranks]


def _mrr_lines(points: list[tuple[float, float]]) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """The upper and the lower lines of the hull: MRR = slope * NDCG + offset * HR."""

    def line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
        slope = (first[1] - second[1]) / (first[0] - second[0])
        return slope, first[1] - slope * first[0]

    if len(points) == 1:
        return (1.0, 0.0), [(1.0, 0.0)]
    return line(points[0], points[-1]), [line(*pair) for pair in pairwise(points)]


def _clip(
    polygon: list[tuple[float, float]], plane: tuple[float, float, float], slack: float = 1e-12
) -> list[tuple[float, float]]:
    """The part of a convex polygon on the good side of a line."""
    depths = [plane[0] * x + plane[1] * y + plane[2] for x, y in polygon]
    kept = []
    for index, (here, depth) in enumerate(zip(polygon, depths, strict=True)):
        before, depth_before = polygon[index - 1], depths[index - 1]
        if (depth >= -slack) != (depth_before >= -slack):
            part = depth_before / (depth_before - depth)
            kept.append((before[0] + part * (here[0] - before[0]), before[1] + part * (here[1] - before[1])))
        if depth >= -slack:
            kept.append(here)
    return kept
