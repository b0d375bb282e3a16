"""Checks that would catch a benchmark fooling itself: run them beside every table.

Each returns a :class:`Check`, so that a run can print all of them and a test can demand them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import difference_interval
from cramer_peft.recsys.evaluation.metrics import hit_rate, is_possible, mrr, ndcg
from cramer_peft.recsys.evaluation.tracks import Track
from cramer_peft.recsys.requests.attributes import AttributeRequest


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
    return replace(track, name=f"{track.name}, shuffled", requests=tuple(requests))


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
        best: By :func:`~cramer_peft.recsys.evaluation.control.best_share`.
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
