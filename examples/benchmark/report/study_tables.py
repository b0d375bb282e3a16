"""Tables of the cells with a study: real language, transfer to another domain, and own requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmark.cell_files import CellResult
from benchmark.measures.summary import entry, pooled, summarise
from benchmark.methods import OURS
from benchmark.real_language.language_study import DIALOGUE, REQUEST
from benchmark.real_language.measure_dialogues import NO_REQUEST, SHUFFLED, dialogue_interval
from benchmark.report.aims import Aim
from benchmark.report.groups import Place
from benchmark.report.request_tables import asked_alone, further_tables, request_table, tested_differences
from benchmark.report.tables import cell_text, markdown, seeds_text
from benchmark.transfer.measure_transfer import frozen_values, paired_difference, values_of
from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import Interval

_ZERO_SHOT_GAIN, _ZERO_SHOT_NDCG = 0.6, 0.045  # least
_METRICS = {"ndcg": "NDCG@10", "hr": "HR@10", "mrr": "MRR@10"}
_TRANSFER = {
    "truthful: NDCG@10": ("truthful", "ndcg"),
    "for: satisfaction": ("for", "satisfaction"),
    "for: gain": ("for", "normalised_gain"),
    "for: retention": ("for", "retention"),
    "shared attributes: gain": ("for, shared", "normalised_gain"),
    "new attributes: gain": ("for, new", "normalised_gain"),
    "against: violation": ("against", "violation"),
    "favourite: ratio": ("against favourite", "ratio"),
}


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
        aims: Its aims.
        further: Lines of Markdown behind the table of differences.
        figures: Method → track → metric → value, low, high; where pictures are drawn of it.
    """

    place: Place
    study: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    differences: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    aims: tuple[Aim, ...]
    further: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """The report as Markdown lines."""
        tests = ["p", "adjusted p"] if any("p" in found for found in self.differences.values()) else []
        table = [
            [name, cell_text(found, 4), *(f"{found[test]:.4f}" for test in tests)]
            for name, found in self.differences.items()
        ]
        title = ", ".join((*self.place, self.study))
        lines = [f"## {title}", "", *self.notes, "", *markdown(self.head, self.rows)]
        measured = "NDCG@10" if tests else self.head[1]
        differences = markdown(["difference, paired", measured, *tests], table) if table else []
        return [*lines, *differences, *self.further]

    def document(self) -> dict[str, Any]:
        """Return the entry in the JSON file."""
        own = {"place": list(self.place), "study": self.study, "head": list(self.head)}
        found = {"rows": [list(row) for row in self.rows], "differences": self.differences, "notes": self.notes}
        return {**own, **found, **({"figures": self.figures} if self.figures else {})}


def study_reports(results: Iterable[CellResult]) -> list[StudyReport]:
    """Pool the seeds of the cells that are done, study by study.

    Raises:
        DataError: If seeds or methods of one study have different rows.
    """
    runs: dict[tuple[str, ...], dict[str, list[CellResult]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.status == "done" and "study" in result.cell:
            cell = result.cell
            key = cell["data"], cell["protocol"], cell["backbone"], cell["study"]
            method = cell["method"] if cell["variant"] is None else f"{cell['method']}: {cell['variant']}"
            runs[key][method].append(result)
    reports = []
    for (data, protocol, backbone, study), methods in runs.items():
        make = next((make for start, make in _REPORTS.items() if study.startswith(start)), _transfer)
        reports.append(make((data, protocol, backbone), study, methods))
    return reports


def _pooled(methods: Mapping[str, Sequence[CellResult]]) -> dict[str, dict[str, Tensor]]:
    rows = {len(value) for results in methods.values() for result in results for value in result.values.values()}
    if len(rows) > 1:
        raise DataError(f"{', '.join(methods)}: found results of {sorted(rows)} rows, expected the same rows in all.")
    return {name: pooled([result.values for result in results]) for name, results in methods.items()}


# ---------------------------------------------------------------- real language


def _real_language(place: Place, study: str, methods: Mapping[str, Sequence[CellResult]]) -> StudyReport:
    values = _pooled(methods)
    first = next(iter(methods.values()))[0].figures
    rows, ndcg = _language_rows(values, methods)
    dialogues = _dialogues(values)
    measured = [name for name in values if name in ndcg]
    pairs = [pair for name in measured for pair in ((name, NO_REQUEST), (name, f"{name}, {SHUFFLED}"))]
    pairs += [(OURS, name) for name in measured if name != OURS and OURS in measured]
    # without a request each seed has a frozen model of its own: a method is compared with those of its own seeds
    before = {name: own[f"{NO_REQUEST}/ndcg"] for name, own in values.items()}
    found = {
        f"{one} - {two}": entry(
            dialogue_interval(ndcg[one] - (before[one] if two == NO_REQUEST else ndcg[two]), dialogues)
        )
        for one, two in pairs
    }
    aims = []
    if OURS in measured:
        gain = dialogue_interval(ndcg[OURS] - before[OURS], dialogues)
        aims.append(Aim("real language: NDCG@10 minus that without a request", place, gain, 0.0))
    notes = [
        f"What people said in {first['dialogues']:,} film dialogues, {first['users']:,} rows; "
        f"{first['without_history']:,} rows were left out for want of a history. Dialogues are drawn whole."
    ]
    if study.endswith("validation"):
        notes.append("These dialogues chose strengths, weights and wordings, which flatters the figures.")
    head = ("method", *_METRICS.values(), "seeds", "chosen, first seed")
    return StudyReport(place, study, head, tuple(rows), found, tuple(notes), tuple(aims))


def _dialogues(values: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Return each row's dialogue, which is the same for all methods."""
    return [str(index) for index in next(iter(values.values()))[DIALOGUE].tolist()]


def _language_rows(
    values: Mapping[str, Mapping[str, Tensor]], methods: Mapping[str, Sequence[CellResult]]
) -> tuple[list[tuple[str, ...]], dict[str, Tensor]]:
    """Return the table's rows, and the NDCG of each of them."""
    dialogues = _dialogues(values)

    def row(name: str, track: str, own: Mapping[str, Tensor], results: Sequence[CellResult]) -> tuple[str, ...]:
        intervals = (dialogue_interval(own[f"{track}/{metric}"], dialogues) for metric in _METRICS)
        found = [cell_text(entry(interval), 4) for interval in intervals]
        chosen = results[0].figures["chosen"] if track == REQUEST else {}
        choice = ", ".join(filter(None, (chosen.get("candidate"), chosen.get("wording"))))
        return name, *found, seeds_text(results), choice

    rows, ndcg = [], {}
    for name, own in values.items():
        if NO_REQUEST not in ndcg:
            ndcg[NO_REQUEST] = own[f"{NO_REQUEST}/ndcg"]
            rows.append(row(NO_REQUEST, NO_REQUEST, own, methods[name]))
        if f"{REQUEST}/ndcg" in own:
            for label, track in ((name, REQUEST), (f"{name}, {SHUFFLED}", SHUFFLED)):
                ndcg[label] = own[f"{track}/ndcg"]
                rows.append(row(label, track, own, methods[name]))
    return rows, ndcg


# ---------------------------------------------------------------- transfer


def _transfer(place: Place, study: str, methods: Mapping[str, Sequence[CellResult]]) -> StudyReport:
    values = _pooled(methods)
    rows: list[tuple[str, ...]] = []
    found: dict[str, dict[str, float]] = {}
    aims: list[Aim] = []
    for method, pooled_values in values.items():
        arms = methods[method][0].figures["arms"]
        own = {arm: values_of(pooled_values, arm) for arm in arms}
        if not rows:
            rows.append(_transfer_row("frozen", summarise(frozen_values(own[arms[0]]))))
        for arm in arms:
            name = arm if method == OURS else f"{method}, {arm}"
            tracks = summarise(own[arm])
            rows.append(_transfer_row(name, tracks))
            ndcg = own[arm]["truthful/ndcg"]
            gain = paired_difference(ndcg, own[arm]["truthful/frozen_ndcg"])
            found[f"{name} - frozen"] = entry(gain)
            if arm == "zero-shot" and method == OURS:
                aims += _zero_shot_aims(place, gain, tracks.get("for", {}).get("normalised_gain"))
            for other in arms[arms.index(arm) + 1 :]:
                found[f"{name} - {other}"] = entry(paired_difference(ndcg, own[other]["truthful/ndcg"]))
    first = next(iter(methods.values()))
    head = ("generator", *_TRANSFER)
    return StudyReport(place, study, head, tuple(rows), found, (_transfer_note(first),), tuple(aims))


def _zero_shot_aims(place: Place, lead: Interval, gain: Mapping[str, float] | None) -> list[Aim]:
    name = "transfer, zero-shot: "
    aims = [Aim(f"{name}truthful NDCG@10 minus the frozen model's", place, lead, _ZERO_SHOT_NDCG)]
    if gain is not None:
        found = Interval(gain["value"], gain["low"], gain["high"])
        aims.append(Aim(f"{name}gain of requests for an attribute", place, found, _ZERO_SHOT_GAIN))
    return aims


def _transfer_note(results: Sequence[CellResult]) -> str:
    first = results[0].figures
    return (
        f"{first['users']:,} users; seeds {seeds_text(results)}. {len(first['shared'])} attributes are known to the "
        f"source, {len(first['new'])} are new."
    )


def _transfer_row(name: str, tracks: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    return name, *(cell_text(tracks.get(track, {}).get(metric)) for track, metric in _TRANSFER.values())


# ---------------------------------------------------------------- own requests


def _own_requests(place: Place, study: str, methods: Mapping[str, Sequence[CellResult]]) -> StudyReport:
    values = {name: asked_alone(own) for name, own in _pooled(methods).items()}
    head, rows, figures = request_table(values, methods)
    first = next(iter(methods.values()))[0].figures
    notes = (
        f"{first['users']:,} users; {first['training_requests']:,} training visits with a request. Whole catalogue, "
        "seen items left out; among 100: the target against 100 random unseen items. p: 9,999 random sign flips of the "
        "users' differences; adjusted after Benjamini and Hochberg over this table.",
    )
    further = tuple(further_tables(figures, methods))
    return StudyReport(place, study, head, tuple(rows), tested_differences(values), notes, (), further, figures)


_REPORTS = {"real language": _real_language, "stated requests": _own_requests, "history requests": _own_requests}
