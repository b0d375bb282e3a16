"""What the commands show: tables, titles side by side, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cramer_peft.errors import require
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.evaluation.results import TrackResult
from cramer_peft.recsys.reading import printable
from cramer_peft.recsys.recommender import Answer
from cramer_peft.recsys.requests.heard import heard_line

_DEMO_COLUMNS = {
    "ndcg": "NDCG\n@10",
    "hr": "HR\n@10",
    "mrr": "MRR\n@10",
    "satisfaction": "satisfaction\n@10",
    "violation": "violation\n@10",
    "overlap_empty": "overlap\n@10",
    "seconds": "seconds",
}
_DEMO_TITLE = "Test users, unseen wordings; whole catalogue ranked, seen items removed"
_DEMO_CAPTION = (
    "NDCG, HR, MRR: next item, request true of it. satisfaction: share of the list with the attribute asked for; "
    "violation: with the one excluded; both at random. overlap: with the frozen list, when nothing is asked. "
    "seconds: of training or tuning."
)
_METRICS = {
    "ndcg": "NDCG",
    "hr": "HR",
    "mrr": "MRR",
    "satisfaction": "satisfaction",
    "violation": "violation",
    "share": "its share",
    "overlap": "overlap",
    "normalised_gain": "norm. gain",
    "retention": "retention",
    "ratio": "ratio",
}
_CAPTION = (
    "Top ten of the whole catalogue, seen items removed; 95% intervals from a bootstrap over users. Requests are made "
    "from item attributes, a simulation, except own requests, which the data states. Wordings: {wordings}."
)
_WORDINGS = {"test": "none that a generator is trained on", "validation": "those of training"}


def metrics_table(rows: dict[str, dict[str, float]]) -> Table:
    """Return a ``rich`` table of the demo's methods and metrics, for 80 columns."""
    table = Table(
        title=_DEMO_TITLE, caption=_DEMO_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("method", no_wrap=True)
    for title in _DEMO_COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, metrics in rows.items():
        cells = [f"{metrics[key]:.0f}" if key == "seconds" else f"{metrics[key]:.3f}" for key in _DEMO_COLUMNS]
        table.add_row(name, *cells)
    return table


def tracks_table(tracks: dict[str, TrackResult], stage: Stage) -> Table:
    """Return a ``rich`` table of an evaluation, a line for each track and metric."""
    table = Table(
        title=f"The {stage} users",
        caption=_CAPTION.format(wordings=_WORDINGS[stage]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        show_edge=False,
    )
    for title in ("track", "users", "metric", "frozen", "adapted", "change"):
        table.add_column(title, justify="right" if title in ("users", "frozen") else "left", no_wrap=True)
    for name, result in tracks.items():
        first = (name, f"{result.users:,}")
        for metric, adapted in result.adapted.items():
            frozen, change = result.frozen[metric], result.change[metric]
            table.add_row(*first, _METRICS[metric], f"{frozen.estimate:.3f}", str(adapted), f"{change.estimate:+.3f}")
            first = ("", "")
        for metric, ratio in result.ratios.items():
            table.add_row("", "", _METRICS[metric], "", "too few users" if ratio is None else str(ratio), "")
    return table


def examples_table(examples: Sequence[tuple[str | None, list[str]]]) -> Table:
    """Return a ``rich`` table of one user's titles under each request; the last row is after unloading."""
    table = Table(title="One user's top five", show_lines=True)
    table.add_column("request")
    table.add_column("titles")
    for number, (asked, titles) in enumerate(examples):
        last = number == len(examples) - 1
        request = asked or ("(after unloading)" if last else "(none)")
        table.add_row(escape(request), escape("\n".join(titles)))
    return table


def everyday_table(examples: Sequence[tuple[str | None, str | None, list[str]]]) -> Table:
    """Return a ``rich`` table of one user's titles under everyday requests, and of what was heard of each."""
    table = Table(title="The same user, asking as people do", show_lines=True)
    table.add_column("request, and what was heard")
    table.add_column("titles")
    for request, heard, titles in examples:
        said = (request or "(none)") + ("" if heard is None else f"\n→ {heard}")
        table.add_row(escape(said), escape("\n".join(titles)))
    return table


def show_answer(console: Console, answer: Answer, catalogue: Catalogue, request: str | None) -> None:
    """Print one answer, what was heard of the request, and what it changed."""
    console.print(answer_table(answer, catalogue, request))
    if answer.heard is not None:
        console.print(f"  heard: {printable(heard_line(answer.heard))}", highlight=False, markup=False)
    for line in changes(answer, catalogue):
        console.print(f"  {line}", highlight=False, markup=False)


def answer_table(answer: Answer, catalogue: Catalogue, request: str | None) -> Table:
    """Return a ``rich`` table of one answer, with a mark at new items."""
    table = Table(title=escape(f"Recommended under: {request}" if request else "Recommended"))
    for name in ("", "title", "attributes", ""):
        table.add_column(name)
    for rank, item in enumerate(answer.items, start=1):
        mark = "new" if item in answer.came else ""
        attributes = ", ".join(catalogue.attribute_names(item))
        table.add_row(str(rank), escape(catalogue.titles[item]), escape(attributes), mark)
    return table


def changes(answer: Answer, catalogue: Catalogue) -> list[str]:
    """Return lines about what a request changed: titles that went, attribute shares before and after."""
    lines = []
    if answer.went:
        lines.append("went: " + "; ".join(catalogue.titles[item] for item in answer.went))
    moved = {name: pair for name, pair in answer.shares.items() if pair[0] != pair[1]}
    for name, (before, after) in sorted(moved.items(), key=lambda entry: entry[1][0] - entry[1][1]):
        lines.append(f"{name}: {before:.0%} → {after:.0%}")
    return lines or ["the request changed nothing in this list"]


def plot_shares(shares: Mapping[str, tuple[float, float, float]], path: Path) -> None:
    """Draw each attribute's share of the top ten: no request, asked for, asked against."""
    matplotlib = require("matplotlib", extra="demo")
    matplotlib.use("Agg")
    pyplot = require("matplotlib.pyplot", extra="demo")
    order = sorted(shares, key=lambda name: -shares[name][0])[:24]
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    styles = (
        ("asked for", 1, "#2a9d8f", -0.27),
        ("no request", 0, "#8d99ae", 0.0),
        ("asked against", 2, "#e76f51", 0.27),
    )
    for label, index, colour, shift in styles:
        heights = [100 * shares[name][index] for name in order]
        axes.bar([place + shift for place in range(len(order))], heights, width=0.26, label=label, color=colour)
    axes.set_xticks(range(len(order)), order, rotation=35, ha="right")
    axes.set_ylabel("share of the top ten, %")
    axes.set_title("What a request does to a frozen recommender (unseen wordings, the first 200 test users at most)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)  # outside, because bars reach the top
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
