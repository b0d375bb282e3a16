"""Tables of the studies of own requests: stated ones, and the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.cell_files import CellResult
from benchmark.measures.significance import adjusted, paired_p
from benchmark.measures.summary import summarise
from benchmark.methods import CRAMER, OURS
from benchmark.own_requests.measure_requests import LENGTHS, MEAN, NONE, SAMPLED
from benchmark.own_requests.request_study import PROBES
from benchmark.plan.paper_variants import DEFAULTS, PAPER_VARIANTS
from benchmark.report.tables import cell_text, markdown, seeds_text
from cramer_peft.recsys.evaluation.bootstrap import difference_interval
from cramer_peft.recsys.evaluation.tracks import OWN, SHUFFLED

Values = Mapping[str, Tensor]
_FIRST = "ndcg@10"
_COLUMNS = {
    "own requests": (OWN, _FIRST),
    "shuffled": (SHUFFLED, _FIRST),
    "one mean request": (MEAN, _FIRST),
    "no request": (NONE, _FIRST),
    "own, among 100": (OWN + SAMPLED, _FIRST),
    "no request, among 100": (NONE + SAMPLED, _FIRST),
}
_NAMES = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR"}


def request_table(
    values: Mapping[str, Values], methods: Mapping[str, Sequence[CellResult]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]], dict[str, Any]]:
    """Return columns and rows of NDCG@10 by whose request is given, and all figures by method, track and metric.

    Args:
        values: Method → the values per user, averaged over seeds, as :func:`asked_alone` gives them.
        methods: Method → its results.
    """
    figures = {name: summarise(own) for name, own in values.items()}
    rows = []
    for name, tracks in figures.items():
        found = [cell_text(tracks.get(track, {}).get(metric)) for track, metric in _COLUMNS.values()]
        rows.append((name, *found, seeds_text(methods[name])))
    return ("NDCG@10", *_COLUMNS, "seeds"), rows, figures


def asked_alone(own: Values) -> dict[str, Tensor]:
    """Return values in which tracks that everybody has count the users with an own request alone."""
    counted = own.get(f"{OWN}/{_FIRST}")
    if counted is None:
        return dict(own)
    outside = counted.isnan()
    return {
        key: column if key.startswith("probe") else column.masked_fill(outside, torch.nan)
        for key, column in own.items()
    }


def tested_differences(values: Mapping[str, Values]) -> dict[str, dict[str, float]]:
    """Return the paired differences in NDCG@10 with intervals, p, and p after Benjamini and Hochberg.

    Each method's own requests are compared with other people's, with one mean request and with none; the main method
    with the other methods.
    """
    found: dict[str, dict[str, float]] = {}
    for name, first, second in _pairs(values):
        both = ~(first.isnan() | second.isnan())
        if bool(both.any()):
            first, second = first[both], second[both]
            found[name] = {**difference_interval(first, second).as_dict(), "p": paired_p(first, second)}
    corrected = adjusted([one["p"] for one in found.values()])
    for one, p in zip(found.values(), corrected, strict=True):
        one["adjusted p"] = p
    return found


def _pairs(values: Mapping[str, Values]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, own in values.items():
        for behind in ("", SAMPLED) if ": " not in name else ("",):
            for other in (SHUFFLED, MEAN, NONE):
                keys = f"{OWN}{behind}/{_FIRST}", f"{other}{behind}/{_FIRST}"
                if all(key in own for key in keys):
                    yield f"{name}: own - {other}{behind}", own[keys[0]], own[keys[1]]
    plain = [name for name in values if ": " not in name and f"{OWN}/{_FIRST}" in values[name]]
    for main in (one for one in (OURS, CRAMER) if one in plain):
        for name in plain:
            if name != main and not (main == CRAMER and name == OURS):
                for behind in ("", SAMPLED):
                    key = f"{OWN}{behind}/{_FIRST}"
                    yield f"{main} - {name}{behind}", values[main][key], values[name][key]


def further_tables(figures: Mapping[str, Any], methods: Mapping[str, Sequence[CellResult]]) -> list[str]:
    """Return the other tables of a study as Markdown lines: all metrics, what was varied, probes, closed gates."""
    lines = []
    for title, behind in (("Whole catalogue", ""), ("Among 100 random items", SAMPLED)):
        head = [f"{_NAMES[metric]}@{k}" for k in LENGTHS for metric in _NAMES]
        rows = []
        for name, tracks in figures.items():
            own = tracks.get(OWN + behind) or tracks[NONE + behind]
            shown = [cell_text(own.get(f"{metric}@{k}")) for k in LENGTHS for metric in _NAMES]
            rows.append([name, *shown, _possible(methods[name], OWN + behind)])
        lines += [f"### {title}, own requests", "", *markdown([title, *head, "triples possible"], rows)]
    return [*lines, *_varied(figures), *_probes(figures), *_closed(methods)]


def varied_groups(figures: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return study → value → tracks of the paper's method, the default among the values, where it was varied."""
    found: dict[str, dict[str, Any]] = {}
    for name, tracks in figures.items():
        variant = PAPER_VARIANTS.get(name.removeprefix(f"{CRAMER}: "))
        if variant is not None and name.startswith(f"{CRAMER}: "):
            group = found.setdefault(variant.study, {})
            if not group and CRAMER in figures:
                group[DEFAULTS[variant.study]] = figures[CRAMER]
            group[variant.value] = tracks
    for study, group in found.items():
        found[study] = dict(sorted(group.items(), key=lambda one: _order(one[0])))
    return found


def _order(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0  # words stay as they come


def _varied(figures: Mapping[str, Any]) -> list[str]:
    lines = []
    for study, group in varied_groups(figures).items():
        rows = [
            [value, *(cell_text(tracks.get(track, {}).get(metric)) for track, metric in _COLUMNS.values())]
            for value, tracks in group.items()
        ]
        lines += [f"### {CRAMER}: {study}", "", *markdown([study, *_COLUMNS], rows)]
    return lines


def _probes(figures: Mapping[str, Any]) -> list[str]:
    names = [NONE, *PROBES]
    rows = [
        [name, *(cell_text(tracks.get(f"probe: {probe}", {}).get("share")) for probe in names)]
        for name, tracks in figures.items()
        if f"probe: {NONE}" in tracks
    ]
    return ["### Share of the probed attribute in the top ten", "", *markdown(["method", *names], rows)] if rows else []


def _closed(methods: Mapping[str, Sequence[CellResult]]) -> list[str]:
    there = {
        name: results[0].figures["closed_gates"]
        for name, results in methods.items()
        if "closed_gates" in results[0].figures
    }
    if not there:
        return []
    entries = list(dict.fromkeys(entry for found in there.values() for entry in found["share"]))
    rows = [[entry, *(_share(found["share"].get(entry)) for found in there.values())] for entry in entries]
    rows.append(["overlap of two requests", *(f"{found['overlap']:.3f}" for found in there.values())])
    return ["### Share of gates that are closed, first seed", "", *markdown(["gates", *there], rows)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _possible(results: Sequence[CellResult], track: str) -> str:
    checks = [
        check["holds"]
        for result in results
        for check in result.figures["checks"]
        if check["name"].startswith(f"{track}: ")
    ]
    return f"{sum(checks)} of {len(checks)}" if checks else ""
