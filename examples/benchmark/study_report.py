"""Tables of the cells that ask real language or look at another domain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmark.cells import CellResult
from benchmark.redial import NO_REQUEST, SHUFFLED, dialogue_interval
from benchmark.study import DIALOGUE, REQUEST
from benchmark.tables import Aim, cell_text, markdown
from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import Interval, mean_interval
from cramer_peft.recsys.evaluation.summary import entry, pooled, summarise

OURS = "ours"
_Place = tuple[str, str, str]
_METRICS = {"ndcg": "NDCG@10", "hr": "HR@10", "mrr": "MRR@10"}
_TRANSFER = {
    "truthful: NDCG@10": ("truthful", "ndcg"),
    "for: satisfaction": ("for", "satisfaction"),
    "for: gain": ("for", "normalised_gain"),
    "for: retention": ("for", "retention"),
    "shared attributes: gain": ("for, shared", "normalised_gain"),
    "new attributes: gain": ("for, new", "normalised_gain"),
    "against: violation": ("against", "violation"),
}
_BEFORE = {"ndcg": "frozen_ndcg", "satisfaction": "frozen_satisfaction", "violation": "frozen_violation"}


@dataclass(frozen=True)
class StudyReport:
    """One study in one place, ready to be shown.

    Attributes:
        place: Data, protocol, backbone.
        study: Its name.
        head: Columns of its table.
        rows: Rows of its table.
        differences: Difference → value, low, high.
        notes: Sentences beside the table.
        aims: What was aimed at.
    """

    place: _Place
    study: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    differences: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    aims: tuple[Aim, ...]

    @property
    def lines(self) -> list[str]:
        """As Markdown."""
        table = [[name, cell_text(found, 4)] for name, found in self.differences.items()]
        title = ", ".join((*self.place, self.study))
        lines = [f"## {title}", "", *self.notes, "", *markdown(self.head, self.rows)]
        return [*lines, *(markdown(["difference, paired", self.head[1]], table) if table else [])]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        own = {"place": list(self.place), "study": self.study, "head": list(self.head)}
        return {**own, "rows": [list(row) for row in self.rows], "differences": self.differences, "notes": self.notes}


def study_reports(results: Iterable[CellResult]) -> list[StudyReport]:
    """Pool the seeds of what is done, study by study.

    Raises:
        DataError: If seeds or methods of one study have different rows.
    """
    runs: dict[tuple[str, ...], dict[str, list[CellResult]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.status == "done" and "study" in result.cell:
            cell = result.cell
            key = cell["data"], cell["protocol"], cell["backbone"], cell["study"]
            runs[key][cell["method"] if cell["variant"] is None else f"{cell['method']}: {cell['variant']}"].append(
                result
            )
    reports = []
    for (data, protocol, backbone, study), methods in runs.items():
        make = _real_language if study.startswith("real language") else _transfer
        reports.append(make((data, protocol, backbone), study, methods))
    return reports


def _pooled(methods: Mapping[str, Sequence[CellResult]]) -> dict[str, dict[str, Tensor]]:
    rows = {len(value) for results in methods.values() for result in results for value in result.values.values()}
    if len(rows) > 1:
        raise DataError(f"{', '.join(methods)}: found results of {sorted(rows)} rows, expected the same rows in all.")
    return {name: pooled([result.values for result in results]) for name, results in methods.items()}


def _seeds(results: Sequence[CellResult]) -> str:
    return " ".join(str(seed) for seed in sorted(int(result.cell["seed"]) for result in results))


def _real_language(place: _Place, study: str, methods: Mapping[str, Sequence[CellResult]]) -> StudyReport:
    values = _pooled(methods)
    first = next(iter(methods.values()))[0].figures
    dialogues = next(iter(values.values()))[DIALOGUE].tolist()

    def interval(value: Tensor) -> Interval:
        return dialogue_interval(value, [str(index) for index in dialogues])

    def row(name: str, track: str, own: Mapping[str, Tensor], results: Sequence[CellResult]) -> tuple[str, ...]:
        found = [cell_text(entry(interval(own[f"{track}/{metric}"])), 4) for metric in _METRICS]
        chosen = results[0].figures["chosen"] if track == REQUEST else {}
        return name, *found, _seeds(results), ", ".join(filter(None, (chosen.get("candidate"), chosen.get("wording"))))

    rows, tracks = [], {}
    for name, own in values.items():
        if NO_REQUEST not in tracks:
            tracks[NO_REQUEST] = own[f"{NO_REQUEST}/ndcg"]
            rows.append(row(NO_REQUEST, NO_REQUEST, own, methods[name]))
        if f"{REQUEST}/ndcg" in own:
            for label, track in ((name, REQUEST), (f"{name}, {SHUFFLED}", SHUFFLED)):
                tracks[label] = own[f"{track}/ndcg"]
                rows.append(row(label, track, own, methods[name]))
    asked = [name for name in values if name in tracks]
    pairs = [pair for name in asked for pair in ((name, NO_REQUEST), (name, f"{name}, {SHUFFLED}"))]
    pairs += [(OURS, name) for name in asked if name != OURS and OURS in asked]
    # without a request every seed has a frozen model of its own: a method is compared with those of its own seeds
    before = {name: own[f"{NO_REQUEST}/ndcg"] for name, own in values.items()}
    found = {
        f"{one} - {two}": entry(interval(tracks[one] - (before[one] if two == NO_REQUEST else tracks[two])))
        for one, two in pairs
    }
    aims = []
    if OURS in asked:
        gain = interval(tracks[OURS] - before[OURS])
        aims.append(Aim("real language: NDCG@10 minus that without a request", place, gain, 0.0))
    notes = [
        f"What people said in {first['dialogues']:,} film dialogues, {first['users']:,} rows; "
        f"{first['without_history']:,} rows were left out for want of a history. Dialogues are drawn whole."
    ]
    if study.endswith("validation"):
        notes.append("These dialogues chose strengths, weights and wordings, which flatters the figures.")
    head = ("method", *_METRICS.values(), "seeds", "chosen, first seed")
    return StudyReport(place, study, head, tuple(rows), found, tuple(notes), tuple(aims))


def _transfer(place: _Place, study: str, methods: Mapping[str, Sequence[CellResult]]) -> StudyReport:
    values = _pooled(methods)
    rows: list[tuple[str, ...]] = []
    found: dict[str, dict[str, float]] = {}
    aims: list[Aim] = []
    first = next(iter(methods.values()))[0].figures
    for method, own in values.items():
        arms = methods[method][0].figures["arms"]
        tables = {arm: summarise(_arm(own, arm)) for arm in arms}
        if not rows:
            frozen = summarise(_frozen(_arm(own, arms[0])))
            rows.append(_row("frozen", frozen))
        for arm, table in tables.items():
            name = arm if method == OURS else f"{method}, {arm}"
            rows.append(_row(name, table))
            gain = _minus(own, f"{arm}: truthful/ndcg", f"{arm}: truthful/frozen_ndcg")
            found[f"{name} - frozen"] = entry(gain)
            if arm == "zero-shot" and method == OURS:
                aims.append(Aim("transfer, zero-shot: truthful NDCG@10 minus the frozen model's", place, gain, 0.0))
            for other in arms[arms.index(arm) + 1 :]:
                both = _minus(own, f"{arm}: truthful/ndcg", f"{other}: truthful/ndcg")
                found[f"{name} - {other}"] = entry(both)
    alignment = first["alignment"]
    notes = (
        f"{first['users']:,} users; seeds {_seeds(next(iter(methods.values())))}. First seed: "
        f"{alignment['copied']:,} items copied, {alignment['explained']:.2f} of the variance of the source's items "
        f"explained by {alignment['features']}. {len(first['shared'])} attributes are known to the source, "
        f"{len(first['new'])} are new.",
    )
    head = ("generator", *_TRANSFER)
    return StudyReport(place, study, head, tuple(rows), found, notes, tuple(aims))


def _row(name: str, tracks: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    return name, *(cell_text(tracks.get(track, {}).get(metric)) for track, metric in _TRANSFER.values())


def _arm(values: Mapping[str, Tensor], arm: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{arm}: "): value for key, value in values.items() if key.startswith(f"{arm}: ")}


def _frozen(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen model's values under the names of a method's."""
    found = {}
    for key, value in values.items():
        track, metric = key.rsplit("/", 1)
        for name, before in _BEFORE.items():
            if metric == before:
                found[f"{track}/{name}"] = value
    return found


def _minus(values: Mapping[str, Tensor], one: str, two: str) -> Interval:
    difference = values[one] - values[two]
    return mean_interval(difference[~difference.isnan()])
