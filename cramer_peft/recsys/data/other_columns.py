"""What the other columns of a table of items say: numbers, texts, and the year of dates."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import MAX_CATALOGUE_BYTES, Catalogue, plain_text
from cramer_peft.recsys.data.cell_numbers import read_numbers
from cramer_peft.recsys.data.dates import year_of
from cramer_peft.recsys.data.separators import entries_of, is_list
from cramer_peft.recsys.data.table import BLANK, Table

_OF_IDS = re.compile(
    r"(?i:(?:^|[\W_])(?:ids?|asin|isbn|ean|upc|sku|ur[il]s?|links?|images?)$)|[a-z](?:I[dD]|U(?:rl|RL))s?$"
)
_YEAR = re.compile(r"\((\d{4})(?:\s*[-–]\s*(?:\d{4})?\s*)?\)\s*$")
_FEW = 0.1  # share of a column's cells that may be no number


class OtherColumns:
    """The columns of a table of items that become ``texts`` and ``numbers`` of a catalogue, neither ids nor addresses.

    Of a column of dates the year is read. One of texts that is too long for the file of a catalogue is left out, and so
    is one that the catalogue ``known`` does not have; where that has numbers, another cell is a DataError. ``doubts``
    are lines on cells that are not read as one may expect.
    """

    def __init__(
        self, table: Table, names: Sequence[str], titles: Sequence[str], known: Catalogue | None = None
    ) -> None:
        self.texts: dict[str, tuple[str, ...]] = {}
        self.numbers: dict[str, Tensor] = {}
        self.doubts: list[str] = []
        self._table, self._known, self._room = table, known, MAX_CATALOGUE_BYTES // 4
        self._years: dict[str, list[float]] = {}
        for name in names:
            self._read(name)
        if not any("year" in name.lower() for name in self.numbers):
            self._add_years(titles)
        if known is not None:
            self.texts = {name: column for name, column in self.texts.items() if name in known.texts}
            self.numbers = {name: column for name, column in self.numbers.items() if name in known.numbers}
        read = {*self.texts, *self.numbers} | (set(self._years) if "year" in self.numbers else set())
        self.unread = tuple(name for name in names if name not in read)

    def _read(self, name: str) -> None:
        known, kind = self._known, self._table.kinds.get(name, "str")
        refused = known is not None and name in known.numbers
        if known is not None and (refused or name in known.texts):
            kind = "float" if refused else "text"
        cells = ["" if cell.strip().casefold() in BLANK else cell.strip() for cell in self._table[name]]
        filled = [cell for cell in cells if cell]
        if not filled or kind == "float_seq" or _OF_IDS.search(name) or _is_vector(filled[0]):
            return
        values, unclear = read_numbers(cells)
        bad = [row for row, value in enumerate(values) if cells[row] and math.isnan(value)]
        share = len(bad) / len(filled)
        if kind == "float" or (kind != "text" and share < 1 and share <= (0.5 if "year" in name.lower() else _FEW)):
            self._doubt(name, "{where} holds {cell}, which is not read as a number{such}", bad, refused)
            if unclear is not None:
                read = f"read as {values[unclear]:g}: no cell shows whether decimals follow a point or a comma"
                self._doubt(name, f"{{where}} holds {{cell}}, {read}", [unclear])
            if share < 1:
                self.numbers[name] = torch.tensor(values, dtype=torch.float64)
        elif kind != "text" and all(map(year_of, filled)):
            self._years[name] = [float(year_of(cell) or math.nan) for cell in cells]
        elif not all(cell.startswith(("http://", "https://")) for cell in filled):
            texts = tuple(_as_texts(name, cells))
            if (size := sum(map(len, texts))) <= self._room:
                self.texts[name], self._room = texts, self._room - size
            if kind != "text" and share <= 0.5:
                self._doubt(name, "read as text because of {where}: {cell}{such}", bad)

    def _doubt(self, name: str, message: str, rows: Sequence[int], refused: bool = False) -> None:
        """Note, or refuse, what the first of some rows holds, if there are any."""
        if rows:
            word, cell = self._table.word, f"{self._table[name].iloc[rows[0]].strip()!r:.60}"
            such = "" if len(rows) == 1 else f" ({len(rows):,} such {word}s)"
            text = message.format(where=f"{word} {self._table.rows[rows[0]]}", cell=cell, such=such)
            if refused:
                raise DataError(f"{self._table.source}: column {name!r}: {text}. Correct it, or leave it blank.")
            self.doubts.append(f"column {name!r}: {text}")

    def _add_years(self, titles: Sequence[str]) -> None:
        """Add the column "year" of the years in brackets at the end of the titles, or of a column of dates."""
        years = [float(found[1]) if (found := _YEAR.search(title)) else math.nan for title in titles]
        if 0 < len(years) <= 2 * sum(not math.isnan(year) for year in years):
            self._years = {"": years}
        if self._years:
            self.numbers["year"] = torch.tensor(next(iter(self._years.values())), dtype=torch.float64)


def _as_texts(name: str, cells: Sequence[str]) -> list[str]:
    """Return a column's texts: the entries of lists with "|" between them, and for "true" the name of the column."""
    if {cell.casefold() for cell in cells} <= {"", "true", "false"}:
        return [plain_text(name) if cell.casefold() == "true" else "" for cell in cells]
    return ["|".join(entries_of(cell)) if is_list(cell) else cell for cell in cells]


def _is_vector(cell: str) -> bool:
    """Return True if a cell is a list of numbers."""
    return is_list(cell) and not any(map(math.isnan, read_numbers([entry.strip() for entry in entries_of(cell)])[0]))
