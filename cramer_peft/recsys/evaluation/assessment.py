"""Compares an adapted backbone with the frozen one on the users of a split, track by track, with intervals.

Users are taken in batches and only their values are kept, so memory does not grow with users times items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.own_data import LIST_LENGTH, OwnData
from cramer_peft.recsys.data.split import Stage
from cramer_peft.recsys.evaluation.bootstrap import Interval, difference_interval, mean_interval, ratio_interval
from cramer_peft.recsys.evaluation.control import normalised_gain
from cramer_peft.recsys.evaluation.evaluation import Scorer
from cramer_peft.recsys.evaluation.measure import OWN, Setting, measure_values
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, history_counts, truthful_track
from cramer_peft.recsys.requests.attributes import AttributeRequest

_ACCURACY = ("ndcg", "hr", "mrr")
# metric of each track that both models have
_SHARED: dict[str, tuple[str, ...]] = {
    "truthful": _ACCURACY,
    OWN: _ACCURACY,
    "for": ("satisfaction",),
    "against": ("violation",),
    "against favourite": ("share",),
    "empty": ("overlap",),
}
# ratio of means: name → numerator and denominator among the values
_RATIOS: dict[str, dict[str, tuple[str, str]]] = {
    "for": {"normalised_gain": ("gain", "room"), "retention": ("inside_ndcg", "frozen_inside_ndcg")},
    "against": {"retention": ("inside_ndcg", "frozen_inside_ndcg")},
    "against favourite": {"ratio": ("share", "frozen_share"), "retention": ("inside_ndcg", "frozen_inside_ndcg")},
}


@dataclass(frozen=True)
class TrackResult:
    """What one track found.

    Attributes:
        users: How many count.
        frozen: Metric → interval of the frozen model's mean.
        adapted: Metric → interval of the mean under the requests.
        change: Metric → interval of the difference, user by user.
        ratios: Metric → interval of a ratio of means, or None where it is undefined: too few users count.
    """

    users: int
    frozen: dict[str, Interval]
    adapted: dict[str, Interval]
    change: dict[str, Interval]
    ratios: dict[str, Interval | None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: each interval as ``{"value", "low", "high"}``."""
        parts: dict[str, Mapping[str, Interval | None]] = {
            "frozen": self.frozen,
            "adapted": self.adapted,
            "change": self.change,
            "ratios": self.ratios,
        }
        return {"users": self.users, **{name: {k: _plain(v) for k, v in part.items()} for name, part in parts.items()}}


def assess(
    frozen: Callable[[Tensor], Tensor],
    adapted: Scorer,
    data: OwnData,
    stage: Stage,
    templates: Mapping[str, Sequence[str]],
    max_length: int,
    seed: int = 0,
    users: int | None = None,
) -> dict[str, TrackResult]:
    """Evaluate on all users of a stage: the whole catalogue ranked, seen items removed, lists of ten.

    Args:
        frozen: Scores (rows, items) of histories (rows, length).
        adapted: The same under one request text for each row.
        data: The users, and the requests that they stated, if any.
        stage: "validation" to choose by, "test" for the end.
        templates: Wordings of the requests that are made.
        max_length: Longest history that the models take.
        seed: Of the requests, and of the draw of users.
        users: At most so many, drawn at random; None: all.

    Returns:
        Track → result. ``truthful`` names an attribute of the next item; ``for`` and ``against`` a random one;
        ``against favourite`` the most frequent in the history; ``empty`` asks nothing; ``own requests`` are those of
        the data, where it states any.
    """
    known = data.split.history(stage)
    rows = _drawn(len(known), users, seed)
    histories = [known[row] for row in rows.tolist()]
    targets = (data.split.test_target if stage == "test" else data.split.validation_target)[rows]
    tracks = _tracks(data.catalogue, histories, targets, templates, seed)
    own = data.own_requests(stage)
    if own is not None:
        tracks[OWN] = _own_track([own[row] for row in rows.tolist()])
    setting = Setting(data.catalogue, tuple(histories), targets, max_length, seed, LIST_LENGTH)
    plain: Scorer = lambda item_ids, _: frozen(item_ids).float().cpu()  # noqa: E731
    asked: Scorer = lambda item_ids, texts: adapted(item_ids, texts).float().cpu()  # noqa: E731
    values = measure_values(setting, plain, asked, tracks)
    accuracy = {name: track for name, track in tracks.items() if _SHARED[name] == _ACCURACY}
    before = measure_values(setting, plain, None, accuracy)
    values.update({key.replace("/", "/frozen_"): value for key, value in before.items()})
    if "empty/overlap" in values:
        values["empty/frozen_overlap"] = torch.ones_like(values["empty/overlap"])
    results = {}
    for name, track in tracks.items():
        counted = int(track.counts.sum())
        if counted:
            mine = {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}
            results[name] = _result(name, {key: value[track.counts] for key, value in mine.items()}, counted)
    return results


def _drawn(count: int, users: int | None, seed: int) -> Tensor:
    if users is None or users >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:users].sort().values


def _tracks(
    catalogue: Catalogue,
    histories: Sequence[Tensor],
    targets: Tensor,
    templates: Mapping[str, Sequence[str]],
    seed: int,
) -> dict[str, Track]:
    blind = BlindTracks(catalogue.attributes, templates, seed)
    count = len(histories)
    return {
        "truthful": truthful_track(catalogue.item_attributes[targets], catalogue.attributes, templates, seed),
        "for": blind.counterfactual_for(count),
        "against": blind.counterfactual_against(count),
        "against favourite": blind.against_favourite(history_counts(histories, catalogue.item_attributes)),
        "empty": blind.empty(count),
    }


def _own_track(texts: Sequence[str | None]) -> Track:
    requests = tuple(AttributeRequest(text or " ", (), (), "none") for text in texts)
    return Track(OWN, requests, torch.tensor([text is not None for text in texts], dtype=torch.bool))


def _result(name: str, values: dict[str, Tensor], users: int) -> TrackResult:
    result = TrackResult(users, {}, {}, {}, {})
    for metric in _SHARED[name]:
        before, after = values[f"frozen_{metric}"], values[metric]
        result.frozen[metric] = mean_interval(before)
        result.adapted[metric] = mean_interval(after)
        result.change[metric] = difference_interval(after, before)
    if "best_satisfaction" in values:
        parts = (values[key] for key in ("satisfaction", "frozen_satisfaction", "best_satisfaction"))
        values["gain"], values["room"] = normalised_gain(*parts)
    nobody = torch.full((users,), torch.nan)
    for metric, (above, below) in _RATIOS.get(name, {}).items():
        result.ratios[metric] = _ratio(values.get(above, nobody), values.get(below, nobody))
    return result


def _ratio(above: Tensor, below: Tensor) -> Interval | None:
    counted = ~(above.isnan() | below.isnan())
    try:
        interval = ratio_interval(above[counted], below[counted])
    except DataError:  # nobody counts, or the mean below is 0 where few are drawn
        return None
    finite = torch.tensor([interval.estimate, interval.low, interval.high]).isfinite()
    return interval if bool(finite.all()) else None


def _plain(interval: Interval | None) -> dict[str, float] | None:
    if interval is None:
        return None
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}
