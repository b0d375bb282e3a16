"""The items of a data set: their titles, attributes, texts and numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import MAX_CATALOGUE_BYTES, Catalogue, check_cells, flags_of, plain_text
from cramer_peft.recsys.data.columns import Columns, found_columns, id_column
from cramer_peft.recsys.data.dates import year_of
from cramer_peft.recsys.data.separators import (
    DEFAULTS,
    entries_of,
    found_separator,
    in_words,
    is_list,
    no_attribute,
    pieces_of,
)
from cramer_peft.recsys.data.table import Table, listed

_EXAMPLES = 6  # attributes that a description names
_BLANK = frozenset({"", "-", "–", "—", "?", "nan", "none", "null", "n/a", "na", "unknown"})
_OF_IDS = re.compile(
    r"(?i:(?:^|[\W_])(?:ids?|asin|isbn|ean|upc|sku|ur[il]s?|links?|images?)$)|[a-z](?:I[dD]|U(?:rl|RL))s?$"
)
_NUMBER = re.compile(r"(?:[$€£¥₹]\s*)?([+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?:\s*[$€£¥₹])?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_DECIMALS = re.compile(r"[+-]?\d+,\d{1,2}")
_YEAR = re.compile(r"\((\d{4})(?:\s*[-–]\s*(?:\d{4})?\s*)?\)\s*$")


@dataclass(frozen=True, eq=False)
class Items:
    """A catalogue, the columns that it was read from, the separator of the attributes, and what was not read."""

    catalogue: Catalogue
    id_column: str
    title_column: str
    attribute_column: str
    separator: str
    unread: tuple[str, ...]
    untitled: int = 0

    def describe(self) -> list[str]:
        """Return lines that say what was read of the items, and what of it looks wrong."""
        counts = self.catalogue.item_attributes.sum(0).tolist()
        named = sorted(zip(self.catalogue.attributes, counts, strict=True), key=lambda pair: -pair[1])
        most = ", ".join(f"{name!r} ({count:,})" for name, count in named[:_EXAMPLES])
        lines = [f"attributes: column {self.attribute_column!r}, cut at {in_words(self.separator)}: {most}"]
        numbers, texts = list(self.catalogue.numbers), list(self.catalogue.texts)
        fields = {"texts": texts, "numbers": numbers, "columns not read": self.unread}
        lines.append("; ".join(f"{kind}: {listed(names, 20) or 'none'}" for kind, names in fields.items()))
        doubts = {
            "that begin or end with a separator (name the right attribute_separator)": _cut_badly,
            "of one letter, which hardly anybody asks for": lambda name: len(name) == 1 and name.isalpha(),
        }
        found = {words: [name for name, _ in named if doubt(name)] for words, doubt in doubts.items()}
        found["on every item, which tell none apart"] = [n for n, c in named if c == len(self.catalogue) > 1]
        lines += [f"warning: attributes {words}: {listed(names)}" for words, names in found.items() if names]
        untitled = f"warning: {self.untitled:,} items have no title in column {self.title_column!r} and go by their id"
        return [*lines, untitled] if self.untitled else lines


def read_items(table: Table, columns: Columns, item_column: str) -> Items:
    """Read a table of items.

    Args:
        table: One row for each item.
        columns: The columns to read, as far as they are named.
        item_column: The column of the interactions with the item.

    Raises:
        DataError: If a column is missing, an id is blank or there twice, or the attributes cannot be read.
    """
    ids = id_column(table, item_column)
    found = found_columns(table, columns, ("attribute_column",), ("title_column",))
    attributes, title_column = str(found["attribute_column"]), found["title_column"] or ids
    cells = table[attributes].tolist()
    separator = _separator(table, attributes, columns.attribute_separator, cells)
    table.check_kind(ids, "token")
    item_ids = table.ids(ids)
    twice = item_ids[item_ids.duplicated()]
    table.refuse(twice, "{n} values of {name} are there more than once: {ids}. Keep one {word} per item.", name=ids)
    pieces = [pieces_of(cell, separator) for cell in cells]
    named = [str(title).strip() for title in table[title_column]]
    titles = tuple(title or item_id for title, item_id in zip(named, item_ids, strict=True))
    catalogue = _build_catalogue(table, tuple(item_ids), titles, pieces, columns.min_attribute_items)
    _refuse_wordless(table, attributes, catalogue.attributes, pieces)
    others = [name for name in table.names if name not in (ids, title_column, attributes)]
    catalogue, unread = _with_columns(catalogue, table, others)
    return Items(catalogue, ids, title_column, attributes, separator, unread, named.count(""))


def _separator(table: Table, column: str, given: str | None, cells: Sequence[str]) -> str:
    kind = table.kinds.get(column, "str")
    if kind not in DEFAULTS:
        raise DataError(
            f"{table.source}, line 1: attribute_column {column!r} has type {kind}, expected text "
            f"({', '.join(DEFAULTS)})."
        )
    if given == "":
        raise DataError("attribute_separator: found an empty string, expected at least a character.")
    return given or found_separator(cells, kind)


def _build_catalogue(
    table: Table, item_ids: tuple[str, ...], titles: tuple[str, ...], pieces: list[list[str]], min_items: int
) -> Catalogue:
    counts = Counter(piece for row in pieces for piece in set(row))
    kept = (name for name, count in counts.items() if count >= min_items)
    attributes = tuple(sorted(name for name in kept if not no_attribute(name)))
    columns = {name: column for column, name in enumerate(attributes)}
    check_cells(table.source, len(item_ids), len(attributes))
    matrix = flags_of([[columns[piece] for piece in row if piece in columns] for row in pieces], len(attributes))
    return Catalogue(item_ids, titles, attributes, matrix)


def _refuse_wordless(table: Table, column: str, attributes: Sequence[str], pieces: list[list[str]]) -> None:
    """Raise a DataError if an attribute, such as "&nbsp;", has no word that a request could name it by."""
    wordless = [attribute for attribute in attributes if not plain_text(attribute).strip()]
    if wordless:
        row = next(number for number, row in enumerate(pieces) if wordless[0] in row)
        raise DataError(
            f"{table.at(row)}: column {column!r} holds the attribute {wordless[0]!r}, which is blank; expected a "
            "word that requests can name. Remove it from the column, or name another by attribute_column."
        )


def _cut_badly(name: str) -> bool:
    return len(name) > 1 and (name[0] in ",;|[" or name[-1] in ",;|]/")


def _with_columns(catalogue: Catalogue, table: Table, names: Sequence[str]) -> tuple[Catalogue, tuple[str, ...]]:
    """Return the catalogue with the other columns, and the names of those that say nothing.

    They become numbers, and texts that are neither ids nor addresses; of a column of dates the year is read. A column
    of texts that is too long for the file of a catalogue is left out.
    """
    room = MAX_CATALOGUE_BYTES // 4
    texts: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, Tensor] = {}
    dates: dict[str, list[float]] = {}
    for name in names:
        kind = table.kinds.get(name, "str")
        cells = ["" if cell.strip().casefold() in _BLANK else cell.strip() for cell in table[name]]
        filled = [cell for cell in cells if cell]
        if not filled or kind == "float_seq" or _OF_IDS.search(name) or _is_vector(filled[0]):
            continue
        values = [_number(cell) for cell in cells]
        known = sum(not math.isnan(value) for value in values)
        if known and (kind == "float" or known == len(filled) or ("year" in name.lower() and 2 * known >= len(filled))):
            numbers[name] = torch.tensor(values, dtype=torch.float64)
        elif kind != "float" and all(map(year_of, filled)):
            dates[name] = [float(year_of(cell) or math.nan) for cell in cells]
        elif kind != "float" and not all(cell.startswith(("http://", "https://")) for cell in filled):
            cells = _as_texts(name, cells)
            size = sum(map(len, cells))
            if size <= room:
                texts[name] = tuple(cells)
                room -= size
    if not any("year" in name.lower() for name in numbers):
        years = [float(found[1]) if (found := _YEAR.search(title)) else math.nan for title in catalogue.titles]
        if 0 < len(years) <= 2 * sum(not math.isnan(year) for year in years):
            dates = {"": years}
        if dates:
            numbers["year"] = torch.tensor(next(iter(dates.values())), dtype=torch.float64)
    read = {*texts, *numbers, *dates} if "year" in numbers else {*texts, *numbers}
    return replace(catalogue, texts=texts, numbers=numbers), tuple(name for name in names if name not in read)


def _as_texts(name: str, cells: Sequence[str]) -> list[str]:
    """Return a column's texts: the entries of lists with "|" between them, and for "true" the name of the column."""
    if {cell.casefold() for cell in cells} <= {"", "true", "false"}:
        return [plain_text(name) if cell.casefold() == "true" else "" for cell in cells]
    return ["|".join(entries_of(cell)) if is_list(cell) else cell for cell in cells]


def _is_vector(cell: str) -> bool:
    """Return True if a cell is a list of numbers."""
    return is_list(cell) and all(not math.isnan(_number(entry.strip())) for entry in entries_of(cell))


def _number(cell: str) -> float:
    """Return the number that a cell states, with its currency or without; NaN if it states something else."""
    found = _NUMBER.fullmatch(cell)
    digits = found[1] if found else ""
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    elif _DECIMALS.fullmatch(digits):
        digits = digits.replace(",", ".")
    value = float(digits) if digits and "," not in digits else math.nan
    return value if math.isfinite(value) else math.nan
