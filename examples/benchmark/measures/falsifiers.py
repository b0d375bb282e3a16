"""Checks that would catch a benchmark fooling itself: run them beside every table.

Each returns a :class:`Check`, so that a run can print all of them and a test can demand them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import difference_interval
from cramer_peft.recsys.evaluation.metrics import hit_rate, mrr, ndcg
from cramer_peft.recsys.evaluation.tracks import ACCURACY, Track
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest


@dataclass(frozen=True)
class Check:
    """What a falsifier found.

    Attributes:
        name: Of the falsifier.
        holds: Whether the benchmark survives it.
        detail: The figures.
    """

    name: str
    holds: bool
    detail: str


def shuffled(track: Track, seed: int) -> Track:
    """The same sentences, each handed to another user; what a user asked for stays on record.

    Users who count swap among themselves, in one random circle, so nobody keeps their own. ``wanted`` and
    ``unwanted`` stay those of the user: metrics go on measuring what the user meant.

    Args:
        track: Requests, of which two or more count.
        seed: Of the circle.

    Raises:
        DataError: If fewer than two users count.
    """
    users = track.counts.nonzero().flatten().tolist()
    if len(users) < 2:
        raise DataError(f"track {track.name!r}: {len(users)} user(s) count, expected two or more to shuffle.")
    random.Random(f"{seed}:shuffled").shuffle(users)
    requests: list[AttributeRequest] = list(track.requests)
    for user, giver in zip(users, users[1:] + users[:1], strict=True):
        requests[user] = replace(requests[user], text=track.requests[giver].text)
    metrics = frozenset({ACCURACY})  # what control would measure, the sentences do not ask
    return replace(track, name=f"{track.name}, shuffled", requests=tuple(requests), metrics=metrics)


def oracle_filter(scores: Tensor, fits: Tensor) -> Tensor:
    """Scores with everything that satisfies the request in front, in the model's order; ties stay ties.

    Args:
        scores: (rows, items).
        fits: (rows, items) bool.
    """
    ranks = torch.searchsorted(scores.sort(dim=1).values, scores.contiguous())
    return (ranks + fits.long() * scores.shape[1]).float()


def check_shuffled(own: Tensor, shuffled_values: Tensor, frozen: Tensor, level: float = 0.95, seed: int = 0) -> Check:
    """Shuffled requests must erase the gain: a method that gains by anybody's request does not read its own.

    It holds if own requests beat shuffled ones, and shuffled ones do not beat the frozen model, both by
    intervals of a paired bootstrap.

    Args:
        own: The metric per user under their own requests, (users,); more is better.
        shuffled_values: Under shuffled ones.
        frozen: Of the frozen model.
        level: Of the intervals.
        seed: Of the bootstrap.
    """
    gain = difference_interval(own, shuffled_values, level, seed=seed)
    rest = difference_interval(shuffled_values, frozen, level, seed=seed)
    detail = f"own - shuffled {gain}, shuffled - frozen {rest}"
    return Check("shuffled requests erase the gain", gain.low > 0 and rest.low <= 0, detail)


def check_ceiling(satisfaction: Tensor, best: Tensor) -> Check:
    """Nobody's satisfaction may be above that of the filter that knows the answer.

    Args:
        satisfaction: satisfaction@k per user, (users,).
        best: By :func:`~cramer_peft.recsys.evaluation.metrics.best_share`.
    """
    excess = satisfaction - best
    above = int((~(excess <= 1e-6)).sum())  # NaN counts as above
    return Check("the oracle filter is never beaten", above == 0, f"{above} of {len(best)} users above it")


def check_identity(edited: Tensor, frozen: Tensor) -> Check:
    """Strength 0, a blank request or an unloaded adapter must give the frozen scores, bit for bit.

    Args:
        edited: (rows, items).
        frozen: (rows, items).
    """
    if edited.shape != frozen.shape:
        return Check("identity", False, f"shapes {tuple(edited.shape)} and {tuple(frozen.shape)}")
    different = int((edited != frozen).any(1).sum())
    exact = torch.equal(edited, frozen)
    return Check("identity", exact, f"{different} of {len(frozen)} rows differ")


def check_triple(ranks: Tensor, k: int = 10) -> Check:
    """HR, NDCG and MRR must be what rankings with one relevant item can have together.

    Args:
        ranks: Ranks of the targets, (users,), with middle ranks for ties.
        k: Length of the list.
    """
    means = [float(metric(ranks.double(), k).double().mean()) for metric in (hit_rate, ndcg, mrr)]
    return check_reported(means, k, tolerance=1e-6, ties=True)


def check_reported(means: Sequence[float], k: int = 10, tolerance: float = 0.0005, ties: bool = False) -> Check:
    """The same for a row of a table, as printed.

    Args:
        means: HR@k, NDCG@k and MRR@k.
        k: Length of the list.
        tolerance: Half of the last decimal printed.
        ties: Whether ranks may lie halfway between two.
    """
    hr, gain, reciprocal = means
    detail = f"HR@{k} {hr:.4f}, NDCG@{k} {gain:.4f}, MRR@{k} {reciprocal:.4f}"
    return Check("the triple is possible", is_possible(hr, gain, reciprocal, k, tolerance, ties), detail)


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
