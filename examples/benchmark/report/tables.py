"""Markdown tables of figures with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmark.cell_files import CellResult

Entry = Mapping[str, float]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def cell_text(found: Entry | None, digits: int = 3) -> str:
    """Return a figure with its interval; empty text if it was not measured."""
    if found is None:
        return ""
    value, low, high = (f"{found[end]:.{digits}f}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def seeds_text(results: Iterable[CellResult]) -> str:
    """Return the seeds of some results, rising, with a space between two."""
    return " ".join(str(seed) for seed in sorted(int(result.cell["seed"]) for result in results))
