"""Tables of what tracks found, for a terminal."""

from __future__ import annotations

from typing import Any

from cramer_peft.errors import require
from cramer_peft.recsys.data.split import Stage
from cramer_peft.recsys.evaluation.assessment import TrackResult
from cramer_peft.recsys.evaluation.bootstrap import Interval

_NAMES = {
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


def tracks_table(tracks: dict[str, TrackResult], stage: Stage) -> Any:
    """A ``rich`` table, a line for each track and metric."""
    table_module = require("rich.table", extra="demo")
    box = require("rich.box", extra="demo")
    table = table_module.Table(
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
            table.add_row(*first, _NAMES[metric], f"{frozen.estimate:.3f}", str(adapted), f"{change.estimate:+.3f}")
            first = ("", "")
        for metric, ratio in result.ratios.items():
            table.add_row("", "", _NAMES[metric], "", _text(ratio), "")
    return table


def _text(ratio: Interval | None) -> str:
    return "too few users" if ratio is None else str(ratio)
