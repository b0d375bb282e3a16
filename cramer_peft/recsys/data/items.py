"""The items of a data set: their titles, attributes, texts and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.data.catalogue import Catalogue, check_cells, flags_of, plain_text
from cramer_peft.recsys.data.columns import Columns, found_columns, id_column
from cramer_peft.recsys.data.other_columns import OtherColumns
from cramer_peft.recsys.data.separators import DEFAULTS, LIST, found_separator, in_words, no_attribute, pieces_of
from cramer_peft.recsys.data.table import Table, counted, listed

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

_EXAMPLES = 6  # attributes that a description names


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
    cut: bool = True  # some cell holds the separator
    notes: tuple[str, ...] = ()  # lines on what was left out or looks wrong

    def describe(self) -> list[str]:
        """Return lines that say what was read of the items, and what of it looks wrong."""
        counts = self.catalogue.item_attributes.sum(0).tolist()
        named = sorted(zip(self.catalogue.attributes, counts, strict=True), key=lambda pair: -pair[1])
        most = ", ".join(f"{name!r} ({count:,})" for name, count in named[:_EXAMPLES])
        mark = in_words(self.separator)
        how = f"cut at {mark}" if self.cut else f"one in each cell, without {mark}"
        lines = [f"attributes: column {self.attribute_column!r}, {how}: {most}"]
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
        untitled = f"{counted(self.untitled, 'item')} without a title in column {self.title_column!r}, called by the id"
        return [*lines, *([f"warning: {untitled}"] if self.untitled else []), *self.notes]


def read_items(table: Table, columns: Columns, item_column: str, known: Catalogue | None = None) -> Items:
    """Read a table of items.

    Args:
        table: One row for each item.
        columns: The columns to read, as far as they are named.
        item_column: The column of the interactions with the item.
        known: A catalogue that the items are for: of the other columns, those that it has are read; None: all.

    Raises:
        DataError: If a column is missing, an id is blank or there in two rows that differ, or the attributes cannot be
            read; or if a column of numbers of ``known`` holds something else.
    """
    ids = id_column(table, item_column)
    found = found_columns(table, columns, ("attribute_column",), ("title_column",))
    attributes, title_column = str(found["attribute_column"]), found["title_column"] or ids
    table.check_kind(ids, "token")
    table, item_ids, notes = _without_repeats(table, ids)
    cells = table[attributes].tolist()
    separator = _separator(table, attributes, columns.attribute_separator, cells)
    pieces = [pieces_of(cell, separator) for cell in cells]
    named = [str(title).strip() for title in table[title_column]]
    titles = tuple(title or item_id for title, item_id in zip(named, item_ids, strict=True))
    catalogue = _build_catalogue(table, tuple(item_ids), titles, pieces, columns.min_attribute_items)
    _refuse_wordless(table, attributes, catalogue.attributes, pieces)
    others = [name for name in table.names if name not in (ids, title_column, attributes)]
    read = OtherColumns(table, others, titles, known)
    catalogue = replace(catalogue, texts=read.texts, numbers=read.numbers)
    notes += [f"warning: {doubt}" for doubt in read.doubts]
    cut = separator == LIST or any(len(row) > 1 for row in pieces)
    return Items(catalogue, ids, title_column, attributes, separator, read.unread, named.count(""), cut, tuple(notes))


def _without_repeats(table: Table, name: str) -> tuple[Table, pd.Series, list[str]]:
    """Return a table without rows that repeat another in all columns, its ids, and a line on them if there are any."""
    pd = require("pandas", extra="demo")
    ids, notes = table.ids(name), []
    rows = ids.index[ids.duplicated(keep=False)]
    if len(rows):
        repeats = pd.DataFrame({column: table[column].iloc[rows] for column in table.names}).duplicated()
        if repeats.any():
            notes.append(
                f"{counted(int(repeats.sum()), table.word)} of items that repeat another word for word left out"
            )
            ids = ids.drop(repeats.index[repeats])
        twice = ids[ids.duplicated()]
        table.refuse(twice, "{values} of {name} more than once: {ids}. Keep one {word} per item.", name=name)
    return (table.taken(ids.index.tolist(), table.names) if notes else table), ids.reset_index(drop=True), notes


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
