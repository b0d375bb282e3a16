"""What the demo shows: a table, titles side by side, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cramer_peft.errors import require
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.demo import DemoResult, Example
from cramer_peft.recsys.recommender import Answer

_COLUMNS = {
    "ndcg": "NDCG\n@10",
    "hr": "HR\n@10",
    "mrr": "MRR\n@10",
    "satisfaction": "satisfaction\n@10",
    "violation": "violation\n@10",
    "overlap_empty": "overlap\n@10",
    "seconds": "seconds",
}
_TITLE = "Test users, unseen wordings; whole catalogue ranked, seen items removed"
_CAPTION = (
    "NDCG, HR, MRR: next item, request true of it. satisfaction: share of the list with the attribute asked for; "
    "violation: with the one excluded; both at random. overlap: with the frozen list, when nothing is asked. "
    "seconds: of training or tuning."
)


def metrics_table(rows: dict[str, dict[str, float]]) -> Any:
    """A ``rich`` table of the methods' metrics, for 80 columns."""
    table_module = require("rich.table", extra="demo")
    box = require("rich.box", extra="demo")
    table = table_module.Table(
        title=_TITLE, caption=_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("method", no_wrap=True)
    for title in _COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, metrics in rows.items():
        cells = [f"{metrics[key]:.0f}" if key == "seconds" else f"{metrics[key]:.3f}" for key in _COLUMNS]
        table.add_row(name, *cells)
    return table


def examples_table(examples: list[Example]) -> Any:
    """A ``rich`` table of one user's titles under each request."""
    table_module = require("rich.table", extra="demo")
    table = table_module.Table(title="One user's top five", show_lines=True)
    table.add_column("request")
    table.add_column("titles")
    for number, example in enumerate(examples):
        last = number == len(examples) - 1
        request = example.request or ("(after unloading)" if last else "(none)")
        table.add_row(_literal(request), _literal("\n".join(example.titles)))
    return table


def answer_table(answer: Answer, catalogue: Catalogue, request: str | None) -> Any:
    """A ``rich`` table of one answer, new items marked."""
    table_module = require("rich.table", extra="demo")
    table = table_module.Table(title=_literal(f"Recommended under: {request}" if request else "Recommended"))
    for name in ("", "title", "attributes", ""):
        table.add_column(name)
    for rank, item in enumerate(answer.items, start=1):
        mark = "new" if item in answer.came else ""
        attributes = ", ".join(catalogue.attribute_names(item))
        table.add_row(str(rank), _literal(catalogue.titles[item]), _literal(attributes), mark)
    return table


def _literal(text: str) -> str:
    """``text`` with its square brackets kept from ``rich``, which would take them for markup."""
    escaped: str = require("rich.markup", extra="demo").escape(text)
    return escaped


def changes(answer: Answer, catalogue: Catalogue) -> list[str]:
    """What a request changed, in lines: titles that went, attribute shares before and after."""
    lines = []
    if answer.went:
        lines.append("went: " + "; ".join(catalogue.titles[item] for item in answer.went))
    moved = {name: pair for name, pair in answer.shares.items() if pair[0] != pair[1]}
    for name, (before, after) in sorted(moved.items(), key=lambda entry: entry[1][0] - entry[1][1]):
        lines.append(f"{name}: {before:.0%} → {after:.0%}")
    return lines or ["the request changed nothing in this list"]


def plot_shares(result: DemoResult, path: Path) -> None:
    """Draw each attribute's share of the top ten: no request, asked for, asked against.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="demo")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot", extra="demo")
    order = sorted(result.shares, key=lambda name: -result.shares[name][0])[:24]
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    styles = (
        ("asked for", 1, "#2a9d8f", -0.27),
        ("no request", 0, "#8d99ae", 0.0),
        ("asked against", 2, "#e76f51", 0.27),
    )
    for label, index, colour, shift in styles:
        heights = [100 * result.shares[name][index] for name in order]
        axes.bar([place + shift for place in range(len(order))], heights, width=0.26, label=label, color=colour)
    axes.set_xticks(range(len(order)), order, rotation=35, ha="right")
    axes.set_ylabel("share of the top ten, %")
    axes.set_title("What a request does to a frozen recommender (unseen wordings, the first 200 test users at most)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)  # beside the bars, which reach the top
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
