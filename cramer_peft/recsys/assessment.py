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
from cramer_peft.recsys.bootstrap import Interval, difference_interval, mean_interval, ratio_interval
from cramer_peft.recsys.catalogue import Catalogue
from cramer_peft.recsys.control import best_share, normalised_gain, retention
from cramer_peft.recsys.evaluation import Scorer
from cramer_peft.recsys.metrics import hit_rate, mrr, ndcg, overlap, share, target_ranks, top_items
from cramer_peft.recsys.own_data import LIST_LENGTH, OwnData
from cramer_peft.recsys.requests import AttributeRequest
from cramer_peft.recsys.split import Stage, pad_histories, seen_mask
from cramer_peft.recsys.tracks import BlindTracks, Track, history_counts, truthful_track

OWN = "own requests"
_BATCH = 256
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
    "for": {"normalised_gain": ("gain", "room"), "retention": ("inside", "frozen_inside")},
    "against": {"retention": ("inside", "frozen_inside")},
    "against favourite": {"ratio": ("share", "frozen_share"), "retention": ("inside", "frozen_inside")},
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
    pieces: dict[str, list[dict[str, Tensor]]] = {name: [] for name in tracks}
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        batch = _Batch(frozen, adapted, data.catalogue, histories[part], targets[part], max_length)
        for name, track in tracks.items():
            pieces[name].append(batch.values(Track(name, track.requests[part], track.counts[part])))
    results = {}
    for name, track in tracks.items():
        counted = int(track.counts.sum())
        if counted:
            values = {key: torch.cat([piece[key] for piece in pieces[name]])[track.counts] for key in pieces[name][0]}
            results[name] = _result(name, values, counted)
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


class _Batch:
    """Some users and the frozen model's scores of them."""

    def __init__(
        self,
        frozen: Callable[[Tensor], Tensor],
        adapted: Scorer,
        catalogue: Catalogue,
        histories: Sequence[Tensor],
        targets: Tensor,
        max_length: int,
    ) -> None:
        self.adapted = adapted
        self.catalogue = catalogue
        self.targets = targets
        self.item_ids = pad_histories(histories, max_length)
        self.seen = seen_mask(histories, len(catalogue))
        with torch.no_grad():
            self.frozen = frozen(self.item_ids).float().cpu()
        self.frozen_top = top_items(self.frozen, self.seen, LIST_LENGTH)

    def values(self, track: Track) -> dict[str, Tensor]:
        """Values per user, (rows,) each; NaN where a user does not count for one of them."""
        with torch.no_grad():
            scores = self.adapted(self.item_ids, [request.text for request in track.requests]).float().cpu()
        if track.name in ("truthful", OWN):
            before = {f"frozen_{key}": value for key, value in self._accuracy(self.frozen).items()}
            return {**self._accuracy(scores), **before}
        top = top_items(scores, self.seen, LIST_LENGTH)
        if track.name == "empty":
            same = overlap(top, self.frozen_top)
            return {"overlap": same, "frozen_overlap": torch.ones_like(same)}
        fits = track.satisfying(self.catalogue)
        values = self._retention(scores, fits)
        if track.name == "for":
            flags, metric = fits, "satisfaction"
        else:
            flags, metric = track.excluded(self.catalogue), _SHARED[track.name][0]
        values[metric], values[f"frozen_{metric}"] = share(top, flags), share(self.frozen_top, flags)
        if track.name == "for":
            best = best_share(fits, self.seen, LIST_LENGTH)
            values["gain"], values["room"] = normalised_gain(values[metric], values[f"frozen_{metric}"], best)
        return values

    def _accuracy(self, scores: Tensor) -> dict[str, Tensor]:
        ranks = target_ranks(scores.masked_fill(self.seen, -torch.inf), self.targets)
        return {"ndcg": ndcg(ranks), "hr": hit_rate(ranks), "mrr": mrr(ranks)}

    def _retention(self, scores: Tensor, fits: Tensor) -> dict[str, Tensor]:
        counted = (fits & ~self.seen).gather(1, self.targets[:, None])[:, 0]
        values = {}
        pair = retention(scores, self.frozen, self.seen, fits, self.targets, LIST_LENGTH)
        for key, value in zip(("inside", "frozen_inside"), pair, strict=True):
            values[key] = torch.full((len(counted),), torch.nan).masked_scatter(counted, value.float())
        return values


def _result(name: str, values: dict[str, Tensor], users: int) -> TrackResult:
    result = TrackResult(users, {}, {}, {}, {})
    for metric in _SHARED[name]:
        before, after = values[f"frozen_{metric}"], values[metric]
        result.frozen[metric] = mean_interval(before)
        result.adapted[metric] = mean_interval(after)
        result.change[metric] = difference_interval(after, before)
    for metric, (above, below) in _RATIOS.get(name, {}).items():
        result.ratios[metric] = _ratio(values[above], values[below])
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
