"""What the tables of a benchmark's report are made of: figures with intervals, and aims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cramer_peft.recsys.evaluation.bootstrap import Interval
from cramer_peft.recsys.evaluation.summary import entry

Entry = Mapping[str, float]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def cell_text(found: Entry | None, digits: int = 3) -> str:
    """A figure with its interval; nothing where it was not measured."""
    if found is None:
        return ""
    value, low, high = (f"{found[end]:.{digits}f}" for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Aim:
    """A figure that was aimed at, and what came of it.

    Attributes:
        name: What was aimed at.
        place: Data, protocol, backbone.
        found: The figure with its interval; None: it was not measured.
        bound: The aim.
        at_least: Whether the figure should be that or more, else that or less.
        note: What stands beside it.
    """

    name: str
    place: tuple[str, str, str]
    found: Interval | None
    bound: float
    at_least: bool = True
    note: str = ""

    def _good(self, value: float) -> bool:
        return value >= self.bound - 1e-9 if self.at_least else value <= self.bound + 1e-9

    @property
    def verdict(self) -> str:
        """ "reached", "missed" or "not measured"; with a remark where the interval holds both."""
        if self.found is None:
            return "not measured"
        word = "reached" if self._good(self.found.estimate) else "missed"
        ends = self._good(self.found.low), self._good(self.found.high)
        return word if ends[0] == ends[1] else f"{word} (the interval holds the aim)"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "place": list(self.place),
            "found": None if self.found is None else entry(self.found),
            "bound": self.bound,
            "at_least": self.at_least,
            "verdict": self.verdict,
            "note": self.note,
        }


def aim_table(found: Sequence[Aim]) -> list[str]:
    """Aims as a Markdown table, with its heading."""
    if not found:
        return []
    rows = [
        [
            aim.name + (f" ({aim.note})" if aim.note else ""),
            f"{'≥' if aim.at_least else '≤'} {aim.bound:.3g}",
            "" if aim.found is None else str(aim.found),
            aim.verdict,
        ]
        for aim in found
    ]
    return ["### Aims", "", *markdown(["aim", "bound", "found", ""], rows)]
