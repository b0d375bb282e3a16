"""The aims of a benchmark, and whether they were reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.measures.summary import entry, pooled
from benchmark.methods import METHODS, OURS, OURS_SHUFFLED, PAPER
from benchmark.report.groups import Group, Place
from benchmark.report.tables import Entry, markdown
from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import Interval, difference_interval, ratio_interval, statistic_interval

_NO_BASELINES = (OURS, OURS_SHUFFLED, "static mask")
_NDCG = ("truthful", "ndcg", "frozen_ndcg")
_SATISFACTION = ("for", "satisfaction", "frozen_satisfaction")


@dataclass(frozen=True)
class Aim:
    """A bound for a figure, and the figure that was found.

    Attributes:
        name: Name of the figure.
        place: Data, protocol, backbone.
        found: The figure with its interval; None: it was not measured.
        bound: The aim.
        at_least: Whether the figure should be the bound or more, else the bound or less.
        note: A remark beside it.
    """

    name: str
    place: Place
    found: Interval | None
    bound: float
    at_least: bool = True
    note: str = ""

    def _good(self, value: float) -> bool:
        return value >= self.bound - 1e-9 if self.at_least else value <= self.bound + 1e-9

    @property
    def verdict(self) -> str:
        """ "reached", "missed" or "not measured"; with a remark if the interval holds both."""
        if self.found is None:
            return "not measured"
        word = "reached" if self._good(self.found.estimate) else "missed"
        ends = self._good(self.found.low), self._good(self.found.high)
        return word if ends[0] == ends[1] else f"{word} (the interval holds the aim)"

    def document(self) -> dict[str, Any]:
        """Return the entry in the JSON file."""
        return {
            "name": self.name,
            "place": list(self.place),
            "found": None if self.found is None else entry(self.found),
            "bound": self.bound,
            "at_least": self.at_least,
            "verdict": self.verdict,
            "note": self.note,
        }


def aim_table(found: Sequence[Aim]) -> list[str]:
    """Return aims as a Markdown table, with its heading."""
    if not found:
        return []
    rows = [
        [
            aim.name + (f" ({aim.note})" if aim.note else ""),
            f"{'≥' if aim.at_least else '≤'} {aim.bound:.3g}",
            "" if aim.found is None else str(aim.found),
            aim.verdict,
        ]
        for aim in found
    ]
    return ["### Aims", "", *markdown(["aim", "bound", "found", ""], rows)]


def aims(groups: Sequence[Group]) -> list[Aim]:
    """Return the aims of every place in which ours was run, without those of transfer and real language."""
    found = []
    for place in dict.fromkeys(group.place for group in groups):
        here = {(group.method, group.variant): group for group in groups if group.place == place}
        if (OURS, None) in here:
            found += [*_against_others(place, here), *_of_ours(place, here)]
    return found


def _against_others(place: Place, here: Mapping[tuple[str, str | None], Group]) -> list[Aim]:
    ours, paper = here[OURS, None], here.get((PAPER, None))
    learned = {
        method: group
        for (method, variant), group in here.items()
        if variant is None and METHODS[method].learns > 0 and method not in _NO_BASELINES
    }
    if ("text fusion", None) in here:
        learned["text fusion"] = here["text fusion", None]
    best = min(learned.values(), key=lambda group: _lead(ours, group), default=None)
    lead = None if best is None else _minus(ours, best)
    own = _interval(ours.get("truthful", "ndcg_ratio"))
    return [
        Aim("truthful NDCG@10, times the frozen model's", place, own, 2.0),
        Aim("truthful NDCG@10, times that of the paper's form with its own loss", place, _times(ours, paper), 1.5),
        Aim("truthful NDCG@10, minus that of the best learned baseline", place, lead, 0.0, note=_best(ours, best)),
    ]


def _of_ours(place: Place, here: Mapping[tuple[str, str | None], Group]) -> list[Aim]:
    ours, hidden = here[OURS, None], here.get((OURS, "unseen attributes"))
    spearman = None if ours.strength is None else _interval(ours.strength["spearman"])
    ndcg, satisfaction = _wordings(ours, _NDCG), _wordings(ours, _SATISFACTION)

    def own(track: str, metric: str) -> Interval | None:
        return _interval(ours.get(track, metric))

    share = own("against favourite", "ratio")
    return [
        Aim("for: normalised gain of satisfaction@10", place, own("for", "normalised_gain"), 0.6),
        Aim("for: personalisation retention", place, own("for", "retention"), 0.9),
        Aim("against the favourite: its share over the frozen share", place, share, 1 / 3, False),
        Aim("against the favourite: retention", place, own("against favourite", "retention"), 0.9),
        Aim("nothing asked, unseen wording: overlap@10", place, own("empty", "overlap"), 0.9),
        Aim("blank: overlap@10", place, own("blank", "overlap"), 1.0),
        Aim("strength: Spearman of mean satisfaction", place, spearman, 0.9),
        Aim("unseen wordings: gain of NDCG over that with seen ones", place, ndcg, 0.9),
        Aim("unseen wordings: gain of satisfaction over that with seen ones", place, satisfaction, 0.9),
        Aim("unseen attributes: normalised gain over that of seen ones", place, _attributes(hidden), 0.5),
        Aim("trainable parameters, millions", place, _exact(ours.trainable / 1e6), 0.4, False),
        Aim("seconds of training", place, _exact(ours.seconds["train"]), 300.0, False, _core_time(ours)),
    ]


def _interval(found: Entry | None) -> Interval | None:
    return None if found is None else Interval(found["value"], found["low"], found["high"])


def _core_time(group: Group) -> str:
    time = [f"{group.seconds['train_cpu']:.0f} s of processor time"] if "train_cpu" in group.seconds else []
    return ", ".join([*time, *(f"on {device}" for device in group.trained_on if device != "cpu")])


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


# ---------------------------------------------------------------- two methods


def _lead(ours: Group, baseline: Group) -> float:
    """Return the mean lead of ours in the seeds that both have; infinite if they share none."""
    found = _both(ours, baseline, "truthful/ndcg")
    return float("inf") if found is None else float((found[0] - found[1]).mean())


def _best(ours: Group, best: Group | None) -> str:
    if best is None:
        return ""
    shared = _shared_seeds(ours, best)
    of = "" if len(shared) == len(ours.seeds) else f", seed {' '.join(map(str, shared))} of both"
    return f"the best is {best.method}{of}"


def _shared_seeds(first: Group, second: Group) -> list[int]:
    """Return the seeds of both: seeds differ in backbone and requests, so only the same ones are compared."""
    return [seed for seed in first.seeds if seed in second.seeds]


def _both(first: Group, second: Group | None, key: str) -> tuple[Tensor, Tensor] | None:
    """Return one metric of two groups, for the users who count in both and the seeds that both have."""
    if second is None or key not in first.values or key not in second.values:
        return None
    shared = _shared_seeds(first, second)
    if not shared:
        return None
    one, two = (pooled([{key: group.runs[seed][key]} for seed in shared])[key] for group in (first, second))
    if one.shape != two.shape:
        return None
    counted = ~(one.isnan() | two.isnan())
    return (one[counted], two[counted]) if bool(counted.any()) else None


def _times(first: Group, second: Group | None) -> Interval | None:
    found = _both(first, second, "truthful/ndcg")
    return None if found is None or not bool(found[1].any()) else _unless_undefined(lambda: ratio_interval(*found))


def _minus(first: Group, second: Group) -> Interval | None:
    found = _both(first, second, "truthful/ndcg")
    return None if found is None else difference_interval(*found)


# ---------------------------------------------------------------- ratios of gains


def _wordings(group: Group, of: tuple[str, str, str]) -> Interval | None:
    """Return the gain over the frozen model with unseen wordings, over the gain with seen ones."""
    track, metric, before = of
    keys = [f"{name}/{column}" for name in (track, f"seen wordings {track}") for column in (metric, before)]
    return _gain_ratio(group, keys)


def _attributes(group: Group | None) -> Interval | None:
    """Return the normalised gain for attributes that training could not name, over that for the others."""
    if group is None:
        return None
    columns = ("satisfaction", "frozen_satisfaction", "best_satisfaction")
    keys = [f"{name} attributes for/{column}" for name in ("unseen", "seen") for column in columns]
    return _gain_ratio(group, keys)


def _gain_ratio(group: Group, keys: Sequence[str]) -> Interval | None:
    if any(key not in group.values for key in keys):
        return None
    table = torch.stack([group.values[key] for key in keys], dim=1)
    table = table[~table.isnan().any(1)].double()
    half = len(keys) // 2

    def statistic(means: Tensor) -> Tensor:
        one, two = _gain(means[:, :half]), _gain(means[:, half:])
        return one / two

    return _unless_undefined(lambda: statistic_interval(table, statistic))


def _gain(means: Tensor) -> Tensor:
    """Return the value minus the frozen model's, as a share of the largest possible gain if there is a third column."""
    gain = means[:, 0] - means[:, 1]
    return gain if means.shape[1] == 2 else gain / (means[:, 2] - means[:, 1])


def _unless_undefined(make: Callable[[], Interval]) -> Interval | None:
    try:
        found = make()
    except DataError:
        return None
    return found if all(abs(end) < float("inf") for end in (found.estimate, found.low, found.high)) else None
