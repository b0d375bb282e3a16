"""What the commands show: tables, titles side by side, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cramer_peft.errors import require
from cramer_peft.recsys.commands.followed import Followed
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
_DEMO_TITLE = "{users} test users, unseen wordings; whole catalogue ranked, seen items removed{note}"
_DEMO_CAPTION = (
    "NDCG, HR, MRR: next item, request true of it. satisfaction: share of the list with the attribute asked for; "
    "violation: with the one excluded; both at random. overlap: with the frozen list, when nothing is asked. "
    "seconds: of training or tuning."
)
_SHARES = 4  # that a line names
_WITHOUT, _WITH = "#8d99ae", "#2a9d8f"
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


def metrics_table(rows: dict[str, dict[str, float]], users: int, note: str = "") -> Table:
    """Return a ``rich`` table of the demo's methods and metrics, for 80 columns; a note stands in its title."""
    title = _DEMO_TITLE.format(users=f"{users:,}", note=note and f"\n{note}")
    table = Table(title=title, caption=_DEMO_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
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
    """Return a ``rich`` table of one user's titles under everyday requests, and of what was heard of each.

    The first row is without a request, the last after unloading; titles that are not in the first row are marked.
    """
    table = Table(
        title="One user's top five, asked as people ask",
        caption="+ was not in the list before",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("request, and what was heard", ratio=1)
    table.add_column("titles", ratio=2)
    before = examples[0][2]
    for number, (request, heard, titles) in enumerate(examples):
        said = request or ("(before: no request)" if number == 0 else "(after: masks taken off)")
        said += "" if heard is None else f"\n→ {heard}"
        lines = [f"{' ' if title in before else '+'} {title}" for title in titles]
        table.add_row(escape(said), escape("\n".join(lines)))
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
    """Return lines about what a request changed: titles that went, and the shares of attributes that moved most."""
    lines = []
    if answer.went:
        lines.append("went: " + "; ".join(catalogue.titles[item] for item in answer.went))
    moved = {name: pair for name, pair in answer.shares.items() if pair[0] != pair[1]}
    most = sorted(moved, key=lambda name: -abs(moved[name][1] - moved[name][0]))[:_SHARES]
    if moved:
        shares = ", ".join(f"{name} {moved[name][0]:.0%} → {moved[name][1]:.0%}" for name in most)
        lines.append(f"shares: {shares}" + (f", and {len(moved) - len(most)} more" if len(moved) > len(most) else ""))
    return lines or ["the request changed nothing in this list"]


def plot_followed(rows: Sequence[Followed], users: int, note: str, path: Path) -> None:
    """Draw, for each request, how many of ten titles fit it without the request and with it."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 1.7 + 0.55 * len(rows)), layout="constrained")
    places = range(len(rows), 0, -1)
    for place, row in zip(places, rows, strict=True):
        before, after = 10 * row.before, 10 * row.after
        axes.annotate("", (after, place), (before, place), arrowprops={"arrowstyle": "-|>", "color": _WITH, "lw": 2.5})
        axes.plot(before, place, "o", color=_WITHOUT, markersize=10)
        axes.text(after + 0.25, place, f"{after:.1f}", va="center", color=_WITH, weight="bold")
        axes.text(before - 0.25, place, f"{before:.1f}", va="center", ha="right", color="#5c677d")
    axes.set_yticks(list(places), [f"“{row.request}”".replace("$", r"\$") for row in rows], fontsize=11)
    axes.set_xlim(-0.9, 11.2)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xticks(range(0, 11, 2))
    axes.set_xlabel("how many of ten recommendations fit")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.suptitle(
        "Grey: the recommender as it was. Green: the same one, asked in words.", x=0.02, ha="left", weight="bold"
    )
    axes.set_title(f"mean over {users} test users{note and f'; {note}'}", loc="right", fontsize=9, color="#5c677d")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _pyplot() -> Any:
    matplotlib = require("matplotlib", extra="demo")
    matplotlib.use("Agg")
    return require("matplotlib.pyplot", extra="demo")


def plot_shares(shares: Mapping[str, tuple[float, float, float]], path: Path) -> None:
    """Draw each attribute's share of the top ten: no request, asked for, asked against."""
    pyplot = _pyplot()
    order = sorted(shares, key=lambda name: -shares[name][0])[:24]
    figure, axes = pyplot.subplots(figsize=(11, 5.5), layout="constrained")
    styles = (("asked for", 1, _WITH, -0.27), ("no request", 0, _WITHOUT, 0.0), ("asked against", 2, "#e76f51", 0.27))
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
