"""Put the results of cells together as results.json and results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.cell_files import CellResult
from benchmark.report.aims import aim_table, aims
from benchmark.report.groups import group_results
from benchmark.report.method_tables import place_tables
from benchmark.report.study_tables import study_reports
from benchmark.report.tables import markdown
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import write_bytes, write_json

_INTRODUCTION = (
    "Requests are simulated, sentences made from item attributes, but where real language is named and in studies of "
    "own requests: stated ones, or the texts of the items before. Intervals: 95%, a bootstrap over users or dialogues; "
    "values of several seeds are averaged per row first."
)


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


def build_report(
    results: Sequence[CellResult], command: str, wall_seconds: float, settings: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Return the report as a JSON document and as Markdown.

    Args:
        results: Cells: done, empty and failed.
        command: The command as it was typed.
        wall_seconds: Seconds of this run by the clock.
        settings: Settings of the run.
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
        "groups": [group.document() for group in groups],
        "studies": [study.document() for study in studies],
        "aims": [aim.document() for aim in found],
    }
    lines = ["# Benchmark", "", f"`{command}`", "", f"{wall_seconds / 60:.1f} minutes in this run. {_versions()}", ""]
    lines.append(_INTRODUCTION)
    for place in dict.fromkeys(group.place for group in groups):
        here = [group for group in groups if group.place == place]
        own_aims = [aim for aim in found if aim.place == place]
        lines += ["", f"## {', '.join(place)}", "", *place_tables(here), *aim_table(own_aims)]
    for study in studies:
        lines += ["", *study.lines, *aim_table(study.aims)]
    return document, "\n".join([*lines, *_unfinished(results), *_failed_checks(results)]).rstrip() + "\n"


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items()) + "."


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
