"""Pictures of the studies of own requests: whose request helps, what was varied, and the probed attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.own_requests.measure_requests import MEAN, NONE
from benchmark.own_requests.request_study import PROBES
from benchmark.report.plots import BLUE, DPI, GREEN, GREY, ORANGE, canvas, set_title, slug
from benchmark.report.request_tables import varied_groups
from cramer_peft.errors import require
from cramer_peft.recsys.evaluation.tracks import OWN, SHUFFLED

_TRACKS = {OWN: (BLUE, "o"), SHUFFLED: (ORANGE, "s"), MEAN: (GREEN, "D"), NONE: (GREY, "|")}
_METRIC = "ndcg@10"
_APART = 0.16  # between the marks of one method


def write_request_plots(studies: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the studies of a report that hold figures; a picture that they have no figures for is left out.

    Args:
        studies: As :func:`~benchmark.report.write_report.build_report` gives them.
        folder: Folder of the PNG files; it is made if it is missing.

    Returns:
        The files written.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    require("matplotlib.figure", extra="demo")
    written = []
    for study in studies:
        figures = study.get("figures") or {}
        title = ", ".join((*study["place"], study["study"]))
        plain = {name: tracks for name, tracks in figures.items() if ": " not in name}
        pictures = {"own-requests": _rows(plain, title, "Whose request helps")}
        pictures |= {
            f"varied-{slug(name)}": _rows(group, title, f"The paper's method: {name}")
            for name, group in varied_groups(figures).items()
        }
        pictures["probe"] = _probe(plain, title)
        for name, figure in pictures.items():
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{name}-{slug(title)}.png"
                figure.savefig(path, dpi=DPI, metadata={"Software": None})
                written.append(path)
    return written


def _rows(groups: Mapping[str, Mapping[str, Any]], subtitle: str, title: str) -> Any:
    """Draw NDCG@10 and its interval under each kind of request, a row for each method or value; None without any."""
    shown = {name: tracks for name, tracks in groups.items() if OWN in tracks}
    if not shown:
        return None
    figure, axes = canvas((8.0, 1.6 + 0.55 * len(shown)))
    for place, tracks in enumerate(shown.values()):
        for number, (track, (colour, marker)) in enumerate(_TRACKS.items()):
            found = tracks.get(track, {}).get(_METRIC)
            if found is not None:
                height = -place - _APART * (number - 1.5)
                axes.plot([found["low"], found["high"]], [height] * 2, color=colour, linewidth=1.2, alpha=0.6)
                axes.plot(found["value"], height, marker, color=colour, label=track if place == 0 else None)
    axes.set_yticks([-place for place in range(len(shown))], list(shown))
    axes.set_xlabel("NDCG@10 of the next item, whole catalogue")
    axes.legend(fontsize=8, frameon=False, loc="best")
    set_title(axes, title, subtitle)
    return figure


def _probe(groups: Mapping[str, Mapping[str, Any]], subtitle: str) -> Any:
    """Draw the share of the probed attribute under each sentence, a line for each method; None without any."""
    shown = {name: tracks for name, tracks in groups.items() if f"probe: {next(iter(PROBES))}" in tracks}
    if not shown:
        return None
    figure, axes = canvas((8.0, 4.5))
    names = [NONE, *PROBES]
    for method, tracks in shown.items():
        shares = [tracks.get(f"probe: {name}", {}).get("share") for name in names]
        axes.plot(range(len(names)), [None if one is None else one["value"] for one in shares], "o-", label=method)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("share of the attribute in the top ten")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False)
    set_title(axes, "Fixed sentences for and against an attribute", subtitle)
    return figure
