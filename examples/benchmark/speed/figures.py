"""The figures of the speed benchmark as JSON and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmark.speed.timing import Timing
from cramer_peft.errors import require


def spread_of(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median of ratios as ``ratio``, and the quartiles as ``low`` and ``high``."""
    if len(ratios) < 2:
        return {"ratio": ratios[0], "low": ratios[0], "high": ratios[0]}
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": median, "low": low, "high": high}


def row_figures(timing: Timing) -> dict[str, Any]:
    """Return one row of the report, without its memory."""
    milliseconds = 1000 * statistics.median(timing.seconds)
    return {
        "row": timing.row,
        "against": timing.against,
        "milliseconds": milliseconds,
        **spread_of(timing.ratios),
    }


def table(result: dict[str, Any]) -> Any:
    """Return a ``rich`` table of one model at one batch size."""
    table_module, box = require("rich.table", extra="demo"), require("rich.box", extra="demo")
    title = f"{result['model']}, batch {result['batch']} of length {result['length']}, {result['device']}"
    shown = table_module.Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    shown.add_column("row", no_wrap=True)
    for name in ("ms", "ratio", "quartiles", "peak", "memory"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        shown.add_row(
            row["row"],
            f"{row['milliseconds']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f}–{row['high']:.3f}",
            *_memory(row),
        )
    return shown


def markdown(result: dict[str, Any]) -> str:
    """Return the same table as Markdown."""
    lines = ["| row | ms | ratio (quartiles) | peak | memory |", "| --- | --: | --: | --: | --: |"]
    for row in result["rows"]:
        ratio = f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
        lines.append(f"| {row['row']} | {row['milliseconds']:.3f} | {ratio} | {' | '.join(_memory(row))} |")
    return "\n".join(lines) + "\n"


def check_line(check: dict[str, Any]) -> str:
    """Return the result of a check of a row's scores, as a sentence."""
    if check["equal"]:
        return f"{check['row']}: the scores of the {check['against']} call, bit for bit"
    apart, largest = check["max_abs_difference"], check["max_abs_score"]
    return f"{check['row']}: at most {apart:.2g} from the scores of the {check['against']} call, up to {largest:.2g}"


def _memory(row: dict[str, Any]) -> list[str]:
    return [f"{row[key]:.3f}" if key in row else "" for key in ("peak_ratio", "memory_ratio")]
