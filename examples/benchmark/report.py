"""Puts cells together: seeds pooled per user, tables, the aims and whether they were reached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.cells import CellResult
from benchmark.methods import METHODS
from benchmark.plan import HOLD_OUTS, OURS
from benchmark.study_report import study_reports
from benchmark.tables import Aim, Entry, aim_table, cell_text, markdown
from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import Interval, difference_interval, ratio_interval, statistic_interval
from cramer_peft.recsys.evaluation.summary import pooled, summarise, sweep_interval
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import write_bytes, write_json

PAPER = "paper's gate"
_NOT_LEARNED = (OURS, "ours, shuffled requests", "static mask")


@dataclass(frozen=True, eq=False)
class Group:
    """The seeds of one method in one place.

    Attributes:
        place: Data, protocol, backbone.
        method: The method.
        variant: What is changed in it; None: nothing.
        seeds: Those that are done.
        trainable: Number of parameters trained.
        seconds: Means over the seeds of training and evaluating.
        runs: Seed → "track/metric" → (users,).
        values: "track/metric" → (users,), averaged over the seeds per user.
        tracks: Track → metric → value, low, high, of the averaged values.
        strength: The sweep of the averaged values; None: there is none.
        trained_on: Names of the devices; empty where cells do not say.
    """

    place: tuple[str, str, str]
    method: str
    variant: str | None
    seeds: tuple[int, ...]
    trainable: int
    seconds: Mapping[str, float]
    runs: Mapping[int, Mapping[str, Tensor]]
    values: Mapping[str, Tensor]
    tracks: Mapping[str, Mapping[str, Any]]
    strength: Mapping[str, Any] | None
    trained_on: tuple[str, ...] = ()

    def get(self, track: str, metric: str) -> Entry | None:
        """One figure, if it is there."""
        found: Entry | None = self.tracks.get(track, {}).get(metric)
        return found

    @property
    def label(self) -> str:
        """For tables."""
        return self.method if self.variant is None else self.variant


def group_results(results: Iterable[CellResult]) -> list[Group]:
    """Pool the seeds of what is done.

    Raises:
        DataError: If seeds of one group have different users.
    """
    runs: dict[tuple[str, str, str, str, str | None], list[CellResult]] = defaultdict(list)
    for result in results:
        if result.status == "done" and "study" not in result.cell:
            cell = result.cell
            key = cell["data"], cell["protocol"], cell["backbone"], cell["method"], cell["variant"]
            runs[key].append(result)
    return [_group(key, found) for key, found in runs.items()]


def _group(key: tuple[str, str, str, str, str | None], results: Sequence[CellResult]) -> Group:
    users = {len(column) for result in results for column in result.values.values()}
    if len(users) > 1:
        raise DataError(f"{', '.join(map(str, key))}: the seeds have {sorted(users)} users, expected the same.")
    values = pooled([result.values for result in results])
    seconds = [result.figures["seconds"] for result in results]
    sweep = any(name.startswith("strength ") for name in values)
    return Group(
        place=key[:3],
        method=key[3],
        variant=key[4],
        seeds=tuple(sorted(int(result.cell["seed"]) for result in results)),
        trainable=int(results[0].figures["trainable"]),
        seconds={name: sum(row[name] for row in seconds) / len(seconds) for name in seconds[0]},
        runs={int(result.cell["seed"]): result.values for result in results},
        values=values,
        tracks=summarise(values),
        strength=sweep_interval(values) if sweep else None,
        trained_on=tuple(
            sorted({str(result.figures["trained_on"]) for result in results if "trained_on" in result.figures})
        ),
    )


# ---------------------------------------------------------------- aims


def aims(groups: Sequence[Group]) -> list[Aim]:
    """The aims of every place in which ours was run, but those of transfer and real language."""
    found = []
    for place in dict.fromkeys(group.place for group in groups):
        here = {(group.method, group.variant): group for group in groups if group.place == place}
        if (OURS, None) in here:
            found += _aims(place, here)
    return found


def _aims(place: tuple[str, str, str], here: Mapping[tuple[str, str | None], Group]) -> list[Aim]:
    ours, paper = here[OURS, None], here.get((PAPER, None))
    learned = {
        method: group
        for (method, variant), group in here.items()
        if variant is None and METHODS[method].learns > 0 and method not in _NOT_LEARNED
    }
    if ("text fusion", None) in here:
        learned["text fusion"] = here["text fusion", None]

    def own(track: str, metric: str) -> Interval | None:
        return _interval(ours.get(track, metric))

    best = min(learned.values(), key=lambda group: _lead(ours, group), default=None)
    hidden = here.get((OURS, "unseen attributes"))
    spearman = None if ours.strength is None else _interval(ours.strength["spearman"])
    return [
        Aim("truthful NDCG@10, times the frozen model's", place, own("truthful", "ndcg_ratio"), 2.0),
        Aim("truthful NDCG@10, times that of the paper's gate with its own loss", place, _times(ours, paper), 1.5),
        Aim(
            "truthful NDCG@10, minus that of the best learned baseline",
            place,
            None if best is None else _minus(ours, best),
            0.0,
            note=_best(ours, best),
        ),
        Aim("for: normalised gain of satisfaction@10", place, own("for", "normalised_gain"), 0.6),
        Aim("for: personalisation retention", place, own("for", "retention"), 0.9),
        Aim(
            "against the favourite: its share over the frozen share",
            place,
            own("against favourite", "ratio"),
            1 / 3,
            False,
        ),
        Aim("against the favourite: retention", place, own("against favourite", "retention"), 0.9),
        Aim("nothing asked, unseen wording: overlap@10", place, own("empty", "overlap"), 0.9),
        Aim("blank: overlap@10", place, own("blank", "overlap"), 1.0),
        Aim("strength: Spearman of mean satisfaction", place, spearman, 0.9),
        Aim("unseen wordings: gain of NDCG over that with seen ones", place, _wordings(ours, _NDCG), 0.9),
        Aim(
            "unseen wordings: gain of satisfaction over that with seen ones", place, _wordings(ours, _SATISFACTION), 0.9
        ),
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


def _lead(ours: Group, baseline: Group) -> float:
    """How far ours is ahead, in the seeds that both have; infinite where they share none."""
    found = _both(ours, baseline, "truthful/ndcg")
    return float("inf") if found is None else float((found[0] - found[1]).mean())


def _best(ours: Group, best: Group | None) -> str:
    if best is None:
        return ""
    shared = _shared_seeds(ours, best)
    of = "" if len(shared) == len(ours.seeds) else f", seed {' '.join(map(str, shared))} of both"
    return f"the best is {best.method}{of}"


def _shared_seeds(first: Group, second: Group) -> list[int]:
    """Seeds differ in backbone and requests, so only the same ones are compared."""
    return [seed for seed in first.seeds if seed in second.seeds]


def _both(first: Group, second: Group | None, key: str) -> tuple[Tensor, Tensor] | None:
    """One metric of two groups, of the users who count in both and the seeds that both have."""
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


_NDCG = ("truthful", "ndcg", "frozen_ndcg")
_SATISFACTION = ("for", "satisfaction", "frozen_satisfaction")


def _wordings(group: Group, of: tuple[str, str, str]) -> Interval | None:
    """Gain over the frozen model with unseen wordings, over the gain with seen ones."""
    track, metric, before = of
    keys = [f"{name}/{column}" for name in (track, f"seen wordings {track}") for column in (metric, before)]
    return _gain_ratio(group, keys)


def _attributes(group: Group | None) -> Interval | None:
    """Normalised gain for attributes that training could not name, over that for the others."""
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
    """Value minus that of the frozen model, over what there is to gain where it is known."""
    gain = means[:, 0] - means[:, 1]
    return gain if means.shape[1] == 2 else gain / (means[:, 2] - means[:, 1])


def _unless_undefined(make: Callable[[], Interval]) -> Interval | None:
    try:
        found = make()
    except DataError:
        return None
    return found if all(abs(end) < float("inf") for end in (found.estimate, found.low, found.high)) else None


# ---------------------------------------------------------------- tables

_ACCURACY = {
    "NDCG@10": ("truthful", "ndcg"),
    "HR@10": ("truthful", "hr"),
    "MRR@10": ("truthful", "mrr"),
    "× frozen": ("truthful", "ndcg_ratio"),
    "seen wordings": ("seen wordings truthful", "ndcg"),
    "shuffled requests": ("truthful, shuffled", "ndcg"),
    "replica": ("replica", "ndcg"),
    "replica, 100 negatives": ("replica, 100 negatives", "ndcg"),
}
_CONTROL = {
    "for: satisfaction": ("for", "satisfaction"),
    "for: gain": ("for", "normalised_gain"),
    "for: retention": ("for", "retention"),
    "unwatched: gain": ("for unwatched", "normalised_gain"),
    "mixed: gain": ("mixed", "normalised_gain"),
    "against: violation ratio": ("against", "violation_ratio"),
    "favourite: share": ("against favourite", "share"),
    "favourite: ratio": ("against favourite", "ratio"),
    "favourite: retention": ("against favourite", "retention"),
}
_REST = {
    "empty": ("empty", "overlap"),
    "irrelevant": ("irrelevant", "overlap"),
    "contradictory": ("contradictory", "overlap"),
    "blank": ("blank", "overlap"),
    "for minus against": ("paired", "contrast"),
    "distinctness": ("shared", "distinctness"),
}
_HELD_OUT = {
    "unseen attributes: gain": ("unseen attributes for", "normalised_gain"),
    "seen attributes: gain": ("seen attributes for", "normalised_gain"),
    "unseen attributes: NDCG × frozen": ("unseen attributes truthful", "ndcg_ratio"),
    "seen attributes: NDCG × frozen": ("seen attributes truthful", "ndcg_ratio"),
    "unseen users: NDCG × frozen": ("unseen users truthful", "ndcg_ratio"),
    "seen users: NDCG × frozen": ("seen users truthful", "ndcg_ratio"),
}
_ABLATION = {
    "NDCG@10": _ACCURACY["NDCG@10"],
    "for: gain": _CONTROL["for: gain"],
    "for: retention": _CONTROL["for: retention"],
    "favourite: ratio": _CONTROL["favourite: ratio"],
    "empty": _REST["empty"],
}


def _table(groups: Sequence[Group], columns: Mapping[str, tuple[str, str]], first: str = "method") -> list[str]:
    """A Markdown table, a row for each group; columns that nobody has are left out."""
    kept = {name: place for name, place in columns.items() if any(group.get(*place) for group in groups)}
    rows = [[group.label, *(cell_text(group.get(*place)) for place in kept.values())] for group in groups]
    return markdown([first, *kept], rows) if kept else []


def _costs(groups: Sequence[Group]) -> list[str]:
    rows = [
        [
            group.label,
            " ".join(map(str, group.seeds)),
            f"{group.trainable:,}",
            f"{group.seconds['train']:.0f}",
            f"{group.seconds['train_cpu']:.0f}" if "train_cpu" in group.seconds else "",
            f"{group.seconds['evaluate']:.0f}",
            cell_text(None if group.strength is None else group.strength["spearman"]),
            ", ".join(group.trained_on) if group.trainable else "",
        ]
        for group in groups
    ]
    head = ["method", "seeds", "trainable", "training, s", "of it processor time", "measuring, s", "strength: Spearman"]
    return markdown([*head, "trained on"], rows)


def place_tables(groups: Sequence[Group]) -> list[str]:
    """All tables of one place, as Markdown lines."""
    methods = [group for group in groups if group.variant is None]
    held = [group for group in groups if group.variant in HOLD_OUTS]
    unmet = [group for group in methods if group.get("unseen users truthful", "ndcg_ratio")]
    ablations = [group for group in groups if group.variant is not None and group.variant not in HOLD_OUTS]
    counted = max(
        (int(group.tracks["truthful"]["users"]) for group in methods if "truthful" in group.tracks), default=0
    )
    lines = [f"{counted:,} users count in the truthful track.", "", "### Accuracy", "", *_table(methods, _ACCURACY)]
    lines += ["### Control", "", *_table(methods, _CONTROL), "### What it leaves alone", "", *_table(methods, _REST)]
    lines += ["### Cost", "", *_costs(methods)]
    if held or unmet:
        lines += ["### Held out from training", "", *_table([*held, *unmet], _HELD_OUT, "variant")]
    if ablations:
        own = [group for group in methods if group.method == OURS]
        lines += [
            "### Ablations",
            "",
            *_table([*own, *ablations], _ABLATION, "one change"),
            *_costs([*own, *ablations]),
        ]
    return lines


def build_report(
    results: Sequence[CellResult], command: str, wall_seconds: float, settings: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """The report as a JSON document and as Markdown.

    Args:
        results: Cells: done, empty and failed.
        command: Exactly as it was given.
        wall_seconds: Of this run.
        settings: Of the run.
    """
    groups = group_results(results)
    studies = study_reports(results)
    found = [*aims(groups), *(aim for study in studies for aim in study.aims)]
    document = {
        "command": command,
        "versions": versions(),
        "wall_seconds": wall_seconds,
        "settings": dict(settings or {}),
        "cells": [result.document() for result in results],
        "groups": [_document(group) for group in groups],
        "studies": [study.document() for study in studies],
        "aims": [aim.document() for aim in found],
    }
    lines = ["# Benchmark", "", f"`{command}`", "", f"{wall_seconds / 60:.1f} minutes in this run. {_versions()}", ""]
    lines += ["Requests are simulated, sentences made from item attributes, but where real language is named. "]
    lines[-1] += (
        "Intervals: 95%, a bootstrap over users or dialogues; values of several seeds are averaged per row first."
    )
    for place in dict.fromkeys(group.place for group in groups):
        here = [group for group in groups if group.place == place]
        lines += [
            "",
            f"## {', '.join(place)}",
            "",
            *place_tables(here),
            *aim_table([a for a in found if a.place == place]),
        ]
    for study in studies:
        lines += ["", *study.lines, *aim_table(study.aims)]
    return document, "\n".join([*lines, *_unfinished(results), *_failed_checks(results)]).rstrip() + "\n"


def write_report(
    results: Sequence[CellResult],
    output: Path,
    command: str,
    wall_seconds: float,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.json`` and ``results.md`` into a folder; arguments as for :func:`build_report`."""
    document, text = build_report(results, command, wall_seconds, settings)
    write_json(output / "results.json", document)
    write_bytes(output / "results.md", text.encode())
    return document


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items()) + "."


def _document(group: Group) -> dict[str, Any]:
    return {
        "data": group.place[0],
        "protocol": group.place[1],
        "backbone": group.place[2],
        "method": group.method,
        "variant": group.variant,
        "seeds": list(group.seeds),
        "trainable": group.trainable,
        "seconds": dict(group.seconds),
        "trained_on": list(group.trained_on),
        "tracks": group.tracks,
        "strength": group.strength,
    }


def _unfinished(results: Sequence[CellResult]) -> list[str]:
    rows = [[_name(result), result.status, str(result.reason)] for result in results if result.status != "done"]
    return ["", "## Cells without a result", "", *markdown(["cell", "", "why"], rows)] if rows else []


def _failed_checks(results: Sequence[CellResult]) -> list[str]:
    checks = [(result, check) for result in results for check in result.figures.get("checks", ())]
    rows = [[_name(result), check["name"], check["detail"]] for result, check in checks if not check["holds"]]
    lines = ["", "## Falsifiers", "", f"{len(checks) - len(rows)} of {len(checks)} hold.", ""]
    return [*lines, *(markdown(["cell", "does not hold", "figures"], rows) if rows else [])] if checks else []


def _name(result: CellResult) -> str:
    found = [result.cell.get(key) for key in ("data", "protocol", "backbone", "study", "method", "variant", "seed")]
    return ", ".join(str(value) for value in found if value is not None)
