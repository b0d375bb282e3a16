"""The columns of numbers of a catalogue: years, money, lengths, and others."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import POPULARITY, Catalogue

_ROLES = {
    "year": {"year", "released", "published", "publication"},
    "money": {"price", "prices", "cost", "usd", "eur", "gbp", "dollars", "euros"},
    "length": {"runtime", "duration", "length", "minutes", "mins", "hours", "pages", "playtime", "seconds"},
}
_UNITS = {"hours": {"hours", "hour", "hrs"}, "seconds": {"seconds", "secs", "sec"}, "pages": {"pages", "page"}}


@dataclass(frozen=True)
class Column:
    """A column of numbers, with what it measures.

    Args:
        name: Its name as people read it.
        role: "year", "money", "length" or "other".
        unit: Of a length: "minutes", "hours", "seconds" or "pages".
        words: The words of its name in the catalogue.
        values: The numbers, (items,) float64, NaN where unknown.
        described: The first so many items decide on what is high and low, and on what is new.
    """

    name: str
    role: str
    unit: str
    words: frozenset[str]
    values: Tensor
    described: int

    @property
    def known(self) -> Tensor:
        """The numbers of the items that decide, (known,) float64."""
        own = self.values[: self.described]
        return own[~own.isnan()]

    @property
    def is_useful(self) -> bool:
        """True if at least two items have different numbers."""
        return bool(len(self.known)) and bool(self.known.min() < self.known.max())

    @property
    def highest(self) -> float:
        """The highest number."""
        return float(self.known.max())

    def extreme(self, end: int, share: float) -> float:
        """Return the number beyond which a share of the items is: the highest (``end`` 1) or the lowest (-1)."""
        known = self.known.sort(descending=end > 0).values
        return float(known[min(len(known) - 1, int(share * len(known)))])


def columns_of_numbers(catalogue: Catalogue) -> list[Column]:
    """Return the columns of numbers in which items differ, without popularity."""
    columns = [
        _column(name, values, catalogue.described) for name, values in catalogue.numbers.items() if name != POPULARITY
    ]
    return [column for column in columns if column.is_useful]


def years_of(catalogue: Catalogue) -> Tensor | None:
    """Return the year of each item, NaN where unknown; None if the catalogue has no years."""
    return next((column.values for column in columns_of_numbers(catalogue) if column.role == "year"), None)


def _column(name: str, values: Tensor, described: int) -> Column:
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = frozenset(re.findall(r"[^\W\d_]+", plain))
    role = next((role for role, known in _ROLES.items() if known & words), "other")
    unit = next((unit for unit, known in _UNITS.items() if known & words), "minutes")
    values = values.detach().to("cpu", torch.float64)
    read = "year" if role == "year" else " ".join(re.findall(r"\w+", plain.replace("_", " ")))
    return Column(read or name, role, unit, words, torch.where(values.isfinite(), values, torch.nan), described)


def shown_year(title: str, year: float) -> str:
    """Return an item's year as it is shown beside its title; "" if it is unknown or stands in the title."""
    text = "" if math.isnan(year) else f"{year:.0f}"
    return "" if text in title else text
