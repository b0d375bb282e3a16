"""The items of a data set, read from the ``.item`` file of a pair of atomic files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.atomic import check_fields, check_types, listed, read_atomic, refuse, refuse_blank
from cramer_peft.recsys.data.catalogue import MAX_CATALOGUE_BYTES, Catalogue, check_cells, flags_of, plain_text
from cramer_peft.recsys.data.separators import (
    DEFAULTS,
    entries_of,
    found_separator,
    in_words,
    is_list,
    no_attribute,
    pieces_of,
)

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

TITLE_COLUMNS = ("title", "movie_title", "name", "item_id")
ATTRIBUTE_COLUMNS = ("genres", "class", "genre", "categories", "tags")

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
    """A catalogue, the field and the separator that its attributes were read by, and the fields that were not read."""

    catalogue: Catalogue
    attribute_column: str
    separator: str
    unread: tuple[str, ...]

    def describe(self) -> list[str]:
        """Return lines that say what was read of the items, and what of it looks wrong."""
        counts = self.catalogue.item_attributes.sum(0).tolist()
        named = sorted(zip(self.catalogue.attributes, counts, strict=True), key=lambda pair: -pair[1])
        most = ", ".join(f"{name!r} ({count:,})" for name, count in named[:_EXAMPLES])
        lines = [f"attributes: field {self.attribute_column!r}, cut at {in_words(self.separator)}: {most}"]
        numbers, texts = list(self.catalogue.numbers), list(self.catalogue.texts)
        fields = {"texts": texts, "numbers": numbers, "fields not read": self.unread}
        lines.append("; ".join(f"{kind}: {listed(names, 20) or 'none'}" for kind, names in fields.items()))
        doubts = {
            "that begin or end with a separator (name the right attribute_separator)": _cut_badly,
            "of one letter, which hardly anybody asks for": lambda name: len(name) == 1 and name.isalpha(),
        }
        found = {words: [name for name, _ in named if doubt(name)] for words, doubt in doubts.items()}
        found["on every item, which tell none apart"] = [n for n, c in named if c == len(self.catalogue) > 1]
        return lines + [f"warning: attributes {words}: {listed(names)}" for words, names in found.items() if names]


def read_items(
    path: Path,
    title_column: str | None,
    attribute_column: str | None,
    attribute_separator: str | None,
    min_attribute_items: int,
) -> Items:
    """Read an ``.item`` file; arguments as for :func:`~cramer_peft.recsys.data.datasets.load_dataset`."""
    items, types = read_atomic(path, as_text=True)
    title_column = title_column or next((name for name in TITLE_COLUMNS if name in types), "title")
    attribute_column = attribute_column or next((name for name in ATTRIBUTE_COLUMNS if name in types), "genres")
    needed = {"item_id": None, title_column: "title_column", attribute_column: "attribute_column"}
    check_fields(path, types, needed)
    cells = items[attribute_column].tolist()
    separator = _separator(path, attribute_column, types[attribute_column], attribute_separator, cells)
    check_types(path, types, {"item_id": "token"})
    refuse_blank(path, items["item_id"])
    twice = items["item_id"][items["item_id"].duplicated()]
    refuse(path, twice, "{n} values of item_id are there more than once: {ids}. Keep one line per item.")
    pieces = [pieces_of(cell, separator) for cell in cells]
    named = zip(items[title_column], items["item_id"], strict=True)
    titles = tuple(str(title).strip() or item_id for title, item_id in named)
    catalogue = _build_catalogue(path, items, titles, pieces, min_attribute_items)
    _refuse_wordless(path, attribute_column, catalogue.attributes, pieces)
    others = {name: kind for name, kind in types.items() if name not in needed}
    catalogue = _with_columns(catalogue, items, others)
    unread = tuple(name for name in others if name not in {*catalogue.texts, *catalogue.numbers})
    return Items(catalogue, attribute_column, separator, unread)


def _separator(path: Path, column: str, kind: str, given: str | None, cells: Sequence[str]) -> str:
    if kind not in DEFAULTS:
        raise DataError(
            f"{path}, line 1: attribute_column {column!r} has type {kind}, expected text ({', '.join(DEFAULTS)})."
        )
    if given == "":
        raise DataError("attribute_separator: found an empty string, expected at least a character.")
    return given or found_separator(cells, kind)


def _build_catalogue(
    path: Path, items: pd.DataFrame, titles: tuple[str, ...], pieces: list[list[str]], min_items: int
) -> Catalogue:
    counts = Counter(piece for row in pieces for piece in set(row))
    kept = (name for name, count in counts.items() if count >= min_items)
    attributes = tuple(sorted(name for name in kept if not no_attribute(name)))
    columns = {name: column for column, name in enumerate(attributes)}
    check_cells(path, len(items), len(attributes))
    matrix = flags_of([[columns[piece] for piece in row if piece in columns] for row in pieces], len(attributes))
    return Catalogue(tuple(items["item_id"]), titles, attributes, matrix)


def _refuse_wordless(path: Path, column: str, attributes: Sequence[str], pieces: list[list[str]]) -> None:
    """Raise a DataError if an attribute, such as "&nbsp;", has no word that a request could name it by."""
    wordless = [attribute for attribute in attributes if not plain_text(attribute).strip()]
    if wordless:
        line = next(number for number, row in enumerate(pieces, start=2) if wordless[0] in row)
        raise DataError(
            f"{path}, line {line}: field {column!r} holds the attribute {wordless[0]!r}, which is blank; expected a "
            "word that requests can name. Remove it from the field, or name another field by attribute_column."
        )


def _cut_badly(name: str) -> bool:
    return len(name) > 1 and (name[0] in ",;|[" or name[-1] in ",;|]/")


def _with_columns(catalogue: Catalogue, items: pd.DataFrame, types: dict[str, str]) -> Catalogue:
    """Return the catalogue with the other fields: numbers, and texts that are neither ids nor addresses.

    A field of texts that is too long for the file of a catalogue is left out.
    """
    room = MAX_CATALOGUE_BYTES // 4
    texts: dict[str, tuple[str, ...]] = {}
    numbers: dict[str, Tensor] = {}
    for name, kind in types.items():
        cells = ["" if cell.strip().casefold() in _BLANK else cell.strip() for cell in items[name]]
        filled = [cell for cell in cells if cell]
        if not filled or kind == "float_seq" or _OF_IDS.search(name):
            continue
        values = [_number(cell) for cell in cells]
        known = sum(not math.isnan(value) for value in values)
        if known and (kind == "float" or known == len(filled) or ("year" in name.lower() and 2 * known >= len(filled))):
            numbers[name] = torch.tensor(values, dtype=torch.float64)
        elif kind != "float" and not all(cell.startswith(("http://", "https://")) for cell in filled):
            size = sum(map(len, cells))
            if size <= room:
                texts[name] = tuple("|".join(entries_of(cell)) if is_list(cell) else cell for cell in cells)
                room -= size
    if not any("year" in name.lower() for name in numbers):
        years = [float(found[1]) if (found := _YEAR.search(title)) else math.nan for title in catalogue.titles]
        if 0 < len(years) <= 2 * sum(not math.isnan(year) for year in years):
            numbers["year"] = torch.tensor(years, dtype=torch.float64)
    return replace(catalogue, texts=texts, numbers=numbers)


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
