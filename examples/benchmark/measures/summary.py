"""Means and ratios of means over users with intervals, from values per user; seeds are averaged per user first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.measures.control import pair_influence, spearman
from benchmark.measures.tracks import STRENGTHS
from cramer_peft.recsys.evaluation.bootstrap import Interval, resampled_means, statistic_interval
from cramer_peft.recsys.evaluation.results import RATIOS as STANDARD_RATIOS
from cramer_peft.recsys.evaluation.results import ratio_of

_LEVEL = 0.95
RANK = "rank"  # kept per user for the falsifiers; its mean says nothing


RATIOS = {
    **STANDARD_RATIOS,
    "violation_ratio": ratio_of("violation", "frozen_violation"),
    "ndcg_ratio": ratio_of("ndcg", "frozen_ndcg"),
}


def summarise(values: Mapping[str, Tensor], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Track → metric → value, low and high end of a bootstrap over users, beside ``users``: how many count.

    Beside the means of the values themselves there are the ratios in ``RATIOS`` where their parts are there; a
    ratio is left out where the mean below the line is 0, on all users or on one of twenty resamples.

    Args:
        values: "track/metric" → (users,), NaN where a user does not count.
        seed: Of the bootstrap.
    """
    tracks: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, column in values.items():
        track, metric = key.rsplit("/", 1)
        if metric != RANK and not track.startswith("strength "):
            tracks[track][metric] = column
    return {track: _track(columns, seed) for track, columns in sorted(tracks.items())}


def _track(columns: Mapping[str, Tensor], seed: int) -> dict[str, Any]:
    """Metrics of one track; columns with the same users share one bootstrap."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for metric, column in columns.items():
        groups[(~column.isnan()).numpy().tobytes()].append(metric)
    found: dict[str, Any] = {"users": max(int((~column.isnan()).sum()) for column in columns.values())}
    for metrics in groups.values():
        counted = ~columns[metrics[0]].isnan()
        rows = {metric: columns[metric][counted].double() for metric in metrics}
        found |= _group(rows, seed)
    return found


def _group(rows: dict[str, Tensor], seed: int) -> dict[str, Any]:
    if "distinctness" in rows:
        rows["distinctness"] = pair_influence(rows["distinctness"])
    names = list(rows)
    matrix = torch.stack([rows[name] for name in names], dim=1)
    own, drawn = matrix.mean(0, keepdim=True), resampled_means(matrix, seed=seed)
    found = {name: _ends(own[:, place], drawn[:, place]) for place, name in enumerate(names)}
    for name, ratio in RATIOS.items():
        if not set(ratio.parts) <= set(names):
            continue
        places = [names.index(part) for part in ratio.parts]
        means, resampled = own[:, places], drawn[:, places]
        defined = ratio.below(resampled) != 0
        if float(ratio.below(means)) == 0 or float(defined.double().mean()) < _LEVEL:
            continue
        draws = resampled[defined]
        found[name] = _ends(ratio.above(means) / ratio.below(means), ratio.above(draws) / ratio.below(draws))
    return found


def _ends(estimate: Tensor, resampled: Tensor) -> dict[str, float]:
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled, ends, interpolation="nearest").tolist()
    return Interval(float(estimate), low, high).as_dict()


def entry(interval: Interval) -> dict[str, float]:
    """Return an interval as the JSON files hold it."""
    return interval.as_dict()


def sweep_interval(values: Mapping[str, Tensor], seed: int = 0) -> dict[str, Any]:
    """Satisfaction at each strength, and Spearman's correlation of its mean over users with the strength.

    Args:
        values: With the keys "strength ALPHA/satisfaction".
        seed: Of the bootstrap.
    """
    alphas = [alpha for alpha in STRENGTHS if f"strength {alpha:g}/satisfaction" in values]
    table = torch.stack([values[f"strength {alpha:g}/satisfaction"] for alpha in alphas], dim=1).double()
    table = table[~table.isnan().any(1)]
    strengths = torch.tensor(alphas, dtype=torch.float64)
    found = statistic_interval(table, lambda means: spearman(strengths, means), seed=seed)
    return {"alphas": alphas, "satisfaction": table.mean(0).tolist(), "spearman": found.as_dict()}


def pooled(runs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values of several seeds averaged per user, over the seeds in which the user counts.

    Args:
        runs: Values of each seed, of the same users in the same order.
    """
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    return {key: torch.stack([run[key] for run in runs]).nanmean(0) for key in keys}
