"""Results of an evaluation: means over users, ratios of means, and their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.own_data import LIST_LENGTH, OwnData
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.evaluation.bootstrap import Interval, difference_interval, mean_interval, ratio_interval
from cramer_peft.recsys.evaluation.evaluator import Evaluator
from cramer_peft.recsys.evaluation.metrics import RANK_METRICS
from cramer_peft.recsys.evaluation.tracks import (
    AGAINST,
    BLANK_TEXT,
    EMPTY,
    FAVOURITE,
    FOR,
    OWN,
    SHUFFLED,
    TRUTHFUL,
    Track,
    own_track,
    shuffled_track,
    standard_tracks,
)
from cramer_peft.recsys.evaluation.users import EvaluationUsers, Scorer, drawn_rows


@dataclass(frozen=True)
class Ratio:
    """A metric that is a ratio of means over users: numerator and denominator of columns (..., parts), (...) each."""

    parts: tuple[str, ...]
    above: Callable[[Tensor], Tensor]
    below: Callable[[Tensor], Tensor]


def ratio_of(above: str, below: str) -> Ratio:
    """Return the plain ratio of two means."""
    return Ratio((above, below), lambda columns: columns[..., 0], lambda columns: columns[..., 1])


RATIOS: dict[str, Ratio] = {
    # 0 for the frozen model, 1 for a perfect filter
    "normalised_gain": Ratio(
        ("satisfaction", "frozen_satisfaction", "best_satisfaction"),
        lambda columns: columns[..., 0] - columns[..., 1],
        lambda columns: columns[..., 2] - columns[..., 1],
    ),
    "retention": ratio_of("inside_ndcg", "frozen_inside_ndcg"),
    "ratio": ratio_of("share", "frozen_share"),
}

# track → the means that are compared with the frozen model's, and the ratios, where the track has the values
_REPORTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    TRUTHFUL: (tuple(RANK_METRICS), ()),
    FOR: (("satisfaction",), ("normalised_gain", "retention")),
    AGAINST: (("violation",), ("retention",)),
    FAVOURITE: (("share",), ("ratio", "retention")),
    EMPTY: (("overlap",), ()),
    OWN: (tuple(RANK_METRICS), ()),
    SHUFFLED: (("ndcg",), ()),
}


@dataclass(frozen=True)
class TrackResult:
    """The results of one track: for each metric the interval of its mean, or of a ratio of means."""

    users: int  # who count
    frozen: dict[str, Interval]  # of the frozen model
    adapted: dict[str, Interval]  # under the requests
    change: dict[str, Interval]  # the difference, user by user
    ratios: dict[str, Interval | None]  # None: undefined, because too few users count

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, each interval as ``{"value", "low", "high"}``."""
        values: dict[str, Any] = {"users": self.users}
        for part in ("frozen", "adapted", "change", "ratios"):
            intervals = getattr(self, part).items()
            values[part] = {metric: None if found is None else found.as_dict() for metric, found in intervals}
        return values


def evaluate_stage(
    frozen: Scorer,
    adapted: Scorer,
    data: OwnData,
    stage: Stage,
    templates: Mapping[str, Sequence[str]],
    max_length: int,
    seed: int = 0,
    users: int | None = None,
) -> dict[str, TrackResult]:
    """Compare a method with the frozen model on the users of a stage, or on ``users`` of them drawn by the seed.

    The result is track → result, for the standard tracks and those of stated requests in which somebody counts.
    """
    everybody = EvaluationUsers.of(data.catalogue, data.split, stage, max_length)
    rows = drawn_rows(len(everybody), users, seed)
    chosen = everybody.some(rows)
    tracks = standard_tracks(chosen, templates, seed)
    stated = data.own_requests(stage)
    if stated is not None:
        texts = [stated[row] for row in rows.tolist()]
        tracks |= {OWN: own_track(texts), SHUFFLED: shuffled_track(texts, seed)}
    tracks = {name: track for name, track in tracks.items() if bool(track.counts.any())}
    values = Evaluator(chosen, frozen, adapted, tracks).run()
    return {name: _result(name, track, values) for name, track in tracks.items()}


def _result(name: str, track: Track, values: Mapping[str, Tensor]) -> TrackResult:
    own = {
        key.removeprefix(f"{name}/"): column[track.counts]
        for key, column in values.items()
        if key.startswith(f"{name}/")
    }
    if "overlap" in own:
        own["frozen_overlap"] = torch.ones_like(own["overlap"])
    result = TrackResult(int(track.counts.sum()), {}, {}, {}, {})
    means, ratios = _REPORTED[name]
    for metric in means:
        before, after = own[f"frozen_{metric}"], own[metric]
        result.frozen[metric] = mean_interval(before)
        result.adapted[metric] = mean_interval(after)
        result.change[metric] = difference_interval(after, before)
    nobody = torch.full((result.users,), torch.nan)
    for metric in ratios:
        ratio = RATIOS[metric]
        columns = torch.stack([own.get(part, nobody) for part in ratio.parts], dim=-1)
        result.ratios[metric] = _ratio(ratio.above(columns), ratio.below(columns))
    return result


def _ratio(above: Tensor, below: Tensor) -> Interval | None:
    counted = ~(above.isnan() | below.isnan())
    try:
        interval = ratio_interval(above[counted], below[counted])
    except DataError:  # nobody counts, or the denominator's mean is 0 on a resample
        return None
    finite = torch.tensor([interval.estimate, interval.low, interval.high]).isfinite()
    return interval if bool(finite.all()) else None


def mean_metrics(
    scorer: Scorer | None, frozen: Scorer, users: EvaluationUsers, tracks: Mapping[str, Track], k: int = LIST_LENGTH
) -> dict[str, float]:
    """Measure one method, or the frozen model (None), on the tracks of ``mixed_tracks``; return means over the users.

    ``ndcg`` (also ``ndcg:FAMILY``), ``hr`` and ``mrr`` are of truthful requests. ``favourite`` is the share of the
    history's most frequent attribute when asked against, ``overlap_empty`` and ``overlap_blank`` ask for nothing.
    """
    values = Evaluator(users, frozen, scorer, tracks, k=k).run()
    names = {
        **{metric: f"{TRUTHFUL}/{metric}" for metric in RANK_METRICS},
        "satisfaction": f"{FOR}/satisfaction",
        "violation": f"{AGAINST}/violation",
        "favourite": f"{FAVOURITE}/share",
        "overlap_empty": f"{EMPTY}/overlap",
        "overlap_blank": f"{BLANK_TEXT}/overlap",
    }
    metrics = {metric: float(values[key].mean()) for metric, key in names.items()}
    families = [request.family for request in tracks[TRUTHFUL].requests]
    for family in sorted(set(families)):
        rows = torch.tensor([own == family for own in families])
        metrics[f"ndcg:{family}"] = float(values[f"{TRUTHFUL}/ndcg"][rows].mean())
    return metrics
