"""Tables for the terminal: costs before a run, figures after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmark.plan.budget import Job


def cost_table(jobs: Sequence[Job], workers: int) -> Table:
    """Return a table of the jobs and their estimated time."""
    table = Table(title="Estimated cost, corrected by the cells that are done")
    for name in ("data", "split", "backbone", "what", "runs", "done", "seconds each", "minutes left"):
        table.add_column(name, justify="left" if name in ("data", "split", "backbone", "what") else "right")
    rows: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        cell = job.cell
        rows.setdefault((cell.source.name, cell.protocol, cell.backbone, job.label), []).append(job)
    for row, same in rows.items():
        left = sum(job.seconds for job in same if not job.stored)
        each = sum(job.seconds for job in same) / len(same)
        done = sum(job.stored for job in same)
        table.add_row(*map(escape, row), str(len(same)), str(done), f"{each:.0f}", f"{left / 60:.1f}")
    seconds = sum(job.seconds for job in jobs if not job.stored)
    cells = [job for job in jobs if not job.backbone]
    table.add_section()
    table.add_row(
        "all", "", "", f"{workers} at a time: about {seconds / 60 / workers:.0f} min", str(len(cells)),
        str(sum(job.stored for job in cells)), "", f"{seconds / 60:.1f}",
    )  # fmt: skip
    return table


def study_tables(document: dict[str, Any]) -> list[Table]:
    """Return a table of figures with intervals for each study of a report."""
    tables = []
    for study in document["studies"]:
        table = Table(title=", ".join((*study["place"], study["study"])))
        for number, name in enumerate(study["head"]):
            table.add_column(name, justify="right" if number else "left")
        for row in study["rows"]:
            table.add_row(*map(escape, row))
        tables.append(table)
    return tables


def result_table(document: dict[str, Any]) -> Table:
    """Return a table of a report's main figures, a row for each method."""
    columns = {
        "NDCG@10": ("truthful", "ndcg"),
        "× frozen": ("truthful", "ndcg_ratio"),
        "for: gain": ("for", "normalised_gain"),
        "retention": ("for", "retention"),
        "favourite: ratio": ("against favourite", "ratio"),
        "empty": ("empty", "overlap"),
    }
    table = Table(title="Simulated requests; whole catalogue ranked, seen items removed")
    several = len({group["backbone"] for group in document["groups"]}) > 1
    for name in ("data", "split", *(["backbone"] if several else []), "method", "seeds"):
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right")
    for group in document["groups"]:
        found = [group["tracks"].get(track, {}).get(metric) for track, metric in columns.values()]
        label = group["method"] if group["variant"] is None else f"{group['method']}: {group['variant']}"
        place = [group["data"], group["protocol"], *([group["backbone"]] if several else [])]
        row = [*place, label, " ".join(map(str, group["seeds"]))]
        table.add_row(*map(escape, row), *("" if entry is None else f"{entry['value']:.3f}" for entry in found))
    return table
