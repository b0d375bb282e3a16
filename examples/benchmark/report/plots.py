"""Draw pictures of a benchmark's results, one file for each question and setting.

A setting is one data set, protocol and backbone. Seeds are averaged: values, and the ends of their intervals.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from cramer_peft.errors import DataError, require

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BROWN = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#7F5200",
)
GREY, INK = "#8A8A8A", "#222222"
_COLOURS = (ORANGE, GREEN, PURPLE, SKY, RED, BROWN)
_MARKERS = ("s", "D", "^", "v", "P")  # as many as share no divisor with the colours: 30 methods all look different
DPI = 150
_MOST_ATTRIBUTES = 24
_CEILINGS = re.compile("filter|oracle")

_Result = Mapping[str, Any]
_Setting = tuple[str, str, str]


def write_plots(results: Sequence[_Result], folder: Path, focus: str = "ours") -> list[Path]:
    """Draw the results; a picture that they have no figures for is left out.

    Results of ablations (cells with a ``variant``) are left out.

    Args:
        results: Results of cells, as the benchmark writes them to JSON.
        folder: Folder of the PNG files; it is made if it is missing.
        focus: The method that stands out; attribute shares and spill-over are drawn of it alone.

    Returns:
        The files written, in the order of their settings: ``accuracy-control``, ``strength``, ``shares`` and
        ``spill-over``, each with data, protocol and backbone in its name.

    Raises:
        DataError: If a result has no cell, or a field of it has another form.
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib.figure", extra="demo")
    settings: dict[_Setting, dict[str, list[_Result]]] = defaultdict(lambda: defaultdict(list))
    for number, result in enumerate(results):
        cell = _cell(number, result)
        if cell.get("variant") is None:
            settings[str(cell["data"]), str(cell["protocol"]), str(cell["backbone"])][str(cell["method"])].append(
                result
            )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for setting, methods in sorted(settings.items()):
        title = ", ".join(setting)
        for name, draw in _PLOTS.items():
            figure = draw(methods, title, focus)
            if figure is not None:
                path = folder / f"{name}-{slug('-'.join(setting))}.png"
                figure.savefig(path, dpi=DPI, metadata={"Software": None})
                written.append(path)
    return written


def _cell(number: int, result: _Result) -> Mapping[str, Any]:
    cell = result.get("cell")
    needed = ("data", "protocol", "backbone", "method")
    if not isinstance(cell, Mapping) or any(name not in cell for name in needed):
        raise DataError(f"results[{number}]: found cell {cell!r}, expected an object with {', '.join(needed)}.")
    return cell


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def mean_interval_of(results: Sequence[_Result], track: str, metric: str) -> tuple[float, float, float] | None:
    """Return value, low and high end of one metric, each averaged over the results (seeds) that have it.

    Args:
        results: Results of one method in one setting.
        track: Name of the track.
        metric: Name of the metric in it.

    Returns:
        None if no result has it.

    Raises:
        DataError: If a result has it in another form than ``{"value": …, "low": …, "high": …}``.
    """
    found = [result.get("tracks", {}).get(track, {}).get(metric) for result in results]
    triples = []
    for entry in found:
        if entry is None:
            continue
        try:
            triples.append([float(entry[end]) for end in ("value", "low", "high")])
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{track}/{metric}: found {entry!r}, expected value, low and high.") from error
    if not triples:
        return None
    value, low, high = (sum(column) / len(triples) for column in zip(*triples, strict=True))
    return (value, low, high) if all(map(math.isfinite, (value, low, high))) else None


def plot_accuracy_control(methods: Mapping[str, Sequence[_Result]], title: str, focus: str = "ours") -> Any:
    """Draw satisfaction@10 of requests for a random attribute against NDCG@10 under truthful requests.

    The legend names the points from the top down.

    Args:
        methods: Method → its results, one for each seed.
        title: Title of the picture.
        focus: The method that stands out.

    Returns:
        A matplotlib figure, or None if no method has both figures.
    """
    points = {
        name: (x, y)
        for name, results in methods.items()
        if (x := mean_interval_of(results, "truthful", "ndcg"))
        and (y := mean_interval_of(results, "for", "satisfaction"))
    }
    if not points:
        return None
    figure, axes = canvas((9.6, 5.6))
    order = sorted(points, key=lambda name: (-points[name][1][0], -points[name][0][0]))
    for name, (colour, marker) in _styles(order, focus).items():
        x, y = points[name]
        hollow = bool(_CEILINGS.search(name))
        axes.plot(x[1:], [y[0]] * 2, color=colour, alpha=0.45, linewidth=1.2, zorder=2)
        axes.plot([x[0]] * 2, y[1:], color=colour, alpha=0.45, linewidth=1.2, zorder=2)
        axes.plot(
            x[0],
            y[0],
            marker,
            label=name,
            markersize=9 if name == focus else 7,
            markerfacecolor="white" if hollow else colour,
            markeredgecolor=colour if hollow else "white",
            zorder=4 if name == focus else 3,
        )
    axes.set_xlabel("NDCG@10 of the next item, request true of it")
    axes.set_ylabel("satisfaction@10, random attribute asked for")
    axes.margins(0.06)
    axes.set_ylim(max(axes.get_ylim()[0], -0.03), min(axes.get_ylim()[1], 1.06))
    hollow = any(_CEILINGS.search(name) for name in points)
    set_title(axes, "Accuracy and control", title + ("; hollow: filters, ceilings on such requests" if hollow else ""))
    _name_in_legend(figure, focus)
    return figure


def plot_strength(methods: Mapping[str, Sequence[_Result]], title: str, focus: str = "ours") -> Any:
    """Draw satisfaction@10 at each strength; the band holds all seeds.

    The legend names the curves by their right ends, from the top down.

    Args:
        methods: Method → its results, one for each seed.
        title: Title of the picture.
        focus: The method that stands out.

    Returns:
        A matplotlib figure, or None if no method has a strength sweep.
    """
    curves = {name: curve for name, results in methods.items() if (curve := _strength_curves(name, results))}
    if not curves:
        return None
    figure, axes = canvas((8.0, 5.0))
    means = {name: [sum(c) / len(c) for c in zip(*rows, strict=True)] for name, (_, rows) in curves.items()}
    order = sorted(curves, key=lambda name: (-means[name][-1], name))
    for name, (colour, marker) in _styles(order, focus).items():
        alphas, rows = curves[name]
        columns = list(zip(*rows, strict=True))
        axes.fill_between(
            alphas, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.18, linewidth=0
        )
        width = 2.4 if name == focus else 1.5
        axes.plot(
            alphas, means[name], marker=marker, label=name, color=colour, linewidth=width, markersize=5, zorder=width
        )
    axes.set_xlabel("strength of the request (0: the frozen model)")
    axes.set_ylabel("satisfaction@10, random attribute asked for")
    seeds = max(len(rows) for _, rows in curves.values())
    set_title(axes, "Satisfaction at each strength", f"{title}; band: all {seeds} seeds" if seeds > 1 else title)
    _name_in_legend(figure, focus)
    return figure


def _strength_curves(name: str, results: Sequence[_Result]) -> tuple[list[float], list[list[float]]] | None:
    sweeps = [sweep for result in results if (sweep := result.get("strength"))]
    if not sweeps:
        return None
    alphas = [float(alpha) for alpha in sweeps[0]["alphas"]]
    rows = [[_number(value) for value in sweep["satisfaction"]] for sweep in sweeps]
    if any(list(sweep["alphas"]) != list(sweeps[0]["alphas"]) for sweep in sweeps) or any(
        len(row) != len(alphas) for row in rows
    ):
        raise DataError(f"{name}: the seeds' strength sweeps differ, expected the same strengths and a value for each.")
    return alphas, rows


def plot_shares(methods: Mapping[str, Sequence[_Result]], title: str, focus: str = "ours") -> Any:
    """Draw each attribute's share of the top ten: without a request, asked for, asked against.

    Args:
        methods: Method → its results, one for each seed.
        title: Title of the picture.
        focus: The method that is drawn.

    Returns:
        A matplotlib figure, or None if that method has no shares.
    """
    tables = [table for result in methods.get(focus, ()) if (table := result.get("attribute_shares"))]
    if not tables:
        return None
    names = _same_attributes(focus, tables)
    columns = {key: _mean_rows([table[key] for table in tables]) for key in ("before", "for", "against")}
    order = sorted(range(len(names)), key=lambda index: columns["before"][index])[-_MOST_ATTRIBUTES:]
    figure, axes = canvas((7.6, 1.9 + 0.27 * len(order)))
    rows = range(len(order))
    values = {key: [100 * column[index] for index in order] for key, column in columns.items()}
    # two lines a row, so that neither hides the other if both requests move the share the same way
    styles = (("for", "asked for", BLUE, "o", 0.14), ("against", "asked against", RED, "s", -0.14))
    axes.plot(values["before"], rows, "|", color=INK, markersize=12, markeredgewidth=1.4, label="no request")
    for key, label, colour, marker, shift in styles:
        places = [row + shift for row in rows]
        axes.hlines(places, values["before"], values[key], color=colour, alpha=0.4, linewidth=2.2)
        axes.plot(values[key], places, marker, color=colour, markersize=5.5, label=label)
    axes.set_yticks(rows, [names[index] for index in order])
    axes.set_xlabel("share of the top ten, %")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.7, len(order) - 0.3)
    set_title(axes, "What a request moves", f"{focus}, {title}")
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_spill_over(methods: Mapping[str, Sequence[_Result]], title: str, focus: str = "ours") -> Any:
    """Draw the change of each attribute's share of the top ten when another attribute is asked for.

    Args:
        methods: Method → its results, one for each seed.
        title: Title of the picture.
        focus: The method that is drawn.

    Returns:
        A matplotlib figure, or None if that method has no matrix.
    """
    tables = [table for result in methods.get(focus, ()) if (table := result.get("spill_over"))]
    if not tables:
        return None
    names = _same_attributes(focus, tables)
    matrix = [_mean_rows([table["matrix"][row] for table in tables]) for row in range(len(names))]
    shown = range(min(len(names), _MOST_ATTRIBUTES))
    values = [[100 * matrix[row][column] for column in shown] for row in shown]
    limit = max((abs(value) for row in values for value in row if math.isfinite(value)), default=0.0) or 1.0
    side = 2.6 + 0.3 * len(shown)
    figure, axes = canvas((side + 1.2, side))
    colours = require("matplotlib", extra="demo").colormaps["RdBu"].with_extremes(bad="#DDDDDD")
    image = axes.imshow(values, cmap=colours, vmin=-limit, vmax=limit)
    labels = [names[index] for index in shown]
    axes.set_xticks(shown, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(shown, labels, fontsize=9)
    axes.set_xlabel("attribute whose share changes")
    axes.set_ylabel("attribute asked for")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("change of its share of the top ten, percentage points")
    bar.outline.set_visible(False)
    set_title(axes, "What else a request moves", f"{focus}, {title}")
    return figure


_PLOTS: dict[str, Callable[[Mapping[str, Sequence[_Result]], str, str], Any]] = {
    "accuracy-control": plot_accuracy_control,
    "strength": plot_strength,
    "shares": plot_shares,
    "spill-over": plot_spill_over,
}


def _number(value: Any) -> float:
    """Return a number, or the value of an interval; NaN for null."""
    found = value["value"] if isinstance(value, Mapping) else value
    return math.nan if found is None else float(found)


def _same_attributes(focus: str, tables: Sequence[_Result]) -> list[str]:
    names = list(tables[0]["attributes"])
    if any(list(table["attributes"]) != names for table in tables):
        raise DataError(f"{focus}: the seeds' attributes differ, expected the same catalogue for all seeds.")
    return names


def _mean_rows(rows: Sequence[Sequence[Any]]) -> list[float]:
    """Return the means over the seeds that have a value, column by column; NaN if none has."""
    means = []
    for column in zip(*rows, strict=True):
        known = [number for value in column if math.isfinite(number := _number(value))]
        means.append(sum(known) / len(known) if known else math.nan)
    return means


def _styles(names: Sequence[str], focus: str) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each method, in the given order."""
    own = {"frozen": (INK, "o"), focus: (BLUE, "o")}
    filters = iter(zip(cycle([GREY]), cycle("osD")))
    others = iter(zip(cycle(_COLOURS), cycle(_MARKERS)))
    return {name: own.get(name) or next(filters if _CEILINGS.search(name) else others) for name in names}


def canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure and its axes, without touching pyplot's global state."""
    figure = require("matplotlib.figure", extra="demo").Figure(figsize=size, layout="constrained")
    require("matplotlib.backends.backend_agg", extra="demo").FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def set_title(axes: Any, text: str, below: str) -> None:
    axes.set_title(text, loc="left", fontsize=13, fontweight="bold", pad=24)
    axes.annotate(
        below, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9, color="#555555"
    )


def _name_in_legend(figure: Any, focus: str) -> None:
    """Name the lines in a legend beside the axes, where the names cover nothing."""
    legend = figure.legend(frameon=False, loc="outside right upper", fontsize=9)
    for text in legend.get_texts():
        text.set_color(BLUE if text.get_text() == focus else INK)
