"""A table whose cells are text, wherever it was read, and what is refused of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cramer_peft.errors import DataError, require

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

BLANK = frozenset({"", "-", "–", "—", "?", "nan", "none", "null", "n/a", "na", "unknown"})  # in lower case
_MISSING_NUMBERS = frozenset({"", "nan"})
_NUMBER = re.compile(r"-?\d+(\.0|\.?\d*[eE]\+?\d+)?")
_EXACT = 2**53  # float64 holds every whole number below


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text. One that nobody asks for is not looked at.

    Attributes:
        source: The name of the file, or of the argument that held a data frame.
        names: The names of the columns.
        read: Given a name, returns the cells of the column.
        rows: The line of each row in its file, or its label in a data frame.
        word: What a row is called: "line" or "row".
        kinds: The type of each column that has one, in the words of atomic files.
        notes: What the reading found, such as the separator.
    """

    source: str
    names: tuple[str, ...]
    read: Callable[[str], Sequence[str]]
    rows: Sequence[object]
    word: str = "line"
    kinds: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, name: str) -> pd.Series:
        """Return a column as ``str``, its index the numbers of the rows from 0."""
        pd = require("pandas", extra="demo")
        # dtype object: pandas 2 and 3 infer different string types
        return pd.Series(list(self.read(name)), dtype=object, name=name, index=range(len(self)))

    def at(self, row: int) -> str:
        """Return the place of a row, by its number, for a message."""
        return f"{self.source}, {self.word} {self.rows[row]}"

    def taken(self, rows: Sequence[int], names: Sequence[str]) -> Table:
        """Return a table of some rows and columns of this one."""
        labels = [self.rows[row] for row in rows]
        return replace(self, names=tuple(names), read=lambda name: self[name].iloc[rows].tolist(), rows=labels)

    def check_kind(self, name: str, *expected: str) -> None:
        """Raise a DataError if a column has a type, and another one than expected."""
        found = self.kinds.get(name, expected[0])
        if found not in expected:
            raise DataError(
                f"{self.source}, line 1: column {name!r} has type {found}, expected {' or '.join(expected)}."
            )

    def refuse(self, bad: pd.Series, message: str, **named: str) -> None:
        """Raise a DataError that names the first row with one of the ``bad`` values, if there are any."""
        if len(bad):
            ids = list(dict.fromkeys(bad))
            own = {"word": self.word, "these": f"this {self.word}" if len(bad) == 1 else f"these {self.word}s"}
            own |= {"such": counted(len(bad), f"such {self.word}"), "values": counted(len(ids), "value")}
            text = message.format(rows=len(bad), first=bad.iloc[0], ids=listed(ids), **own, **named)
            raise DataError(f"{self.at(int(bad.index[0]))}: {text}")

    def ids(self, name: str) -> pd.Series:
        """Return a column of ids, none blank: those of an atomic file as they are written, "17.0" of others as "17".

        In other files "NaN" and the like are blank, too.
        """
        column = self[name]
        plain = column.map(str.strip)
        blank = plain[plain.str.casefold().isin({""} if name in self.kinds else BLANK)]
        written = listed(list(dict.fromkeys(filter(None, blank))))
        found = f"{{such}}; {written} counts as blank" if written else "{such}"
        message = f"column {{name!r}} is blank ({found}), expected an id. Remove {{these}}, or fill the cells."
        self.refuse(blank, message, name=name)
        if name not in self.kinds:
            column = self._whole(plain)
        return column

    def _whole(self, column: pd.Series) -> pd.Series:
        """Return ids without the ".0" of tables in which some are missing; raise a DataError if they are rounded."""
        ids = set(column) - {""}
        if not ids or not all(map(_NUMBER.fullmatch, ids)):
            return column
        floats = {text for text in ids if not text.lstrip("-").isdigit()}
        large = {text for text in floats if abs(float(text)) >= _EXACT}
        message = (
            "column {name!r} holds {first}, a number that is too large to be exact. Read or export the ids as text or "
            "whole numbers."
        )
        self.refuse(column[column.isin(large)], message, name=str(column.name))
        return column.map(lambda text: str(int(float(text))) if text in floats else text) if floats else column

    def numbers(self, name: str) -> pd.Series:
        """Return a column as float64, NaN where it is blank; raise a DataError at the first that is no number."""
        pd = require("pandas", extra="demo")
        column = self[name]
        decimals = column.str.replace(r"^\s*([+-]?\d+),(\d{1,2})\s*$", r"\1.\2", regex=True)  # 4,5
        numbers = pd.to_numeric(decimals, errors="coerce").astype("float64")
        doubtful = column[numbers.isna()]
        bad = doubtful[~doubtful.str.strip().str.lower().isin(_MISSING_NUMBERS)]
        self.refuse(
            bad, "column {name!r} holds {first!r}, which is not a number. Correct it, or leave it blank.", name=name
        )
        return numbers


def listed(values: Sequence[str], limit: int = 5) -> str:
    """Return the first few values, quoted, for a message."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more


def counted(number: int, word: str) -> str:
    """Return a number with what it counts: "1 value", "2 values"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def together(*readings: Callable[[], Any]) -> list[Any]:
    """Return what each reading returns; raise a DataError with the problems of all, a line each, if there are any."""
    found, problems = [], []
    for reading in readings:
        try:
            found.append(reading())
        except DataError as error:
            problems.append(str(error.args[0]))
    if problems:
        raise DataError("\n".join(problems))
    return found


def refuse_twice(place: str, names: Sequence[str]) -> None:
    """Raise a DataError if two columns have one name."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{place}: the columns {listed(twice)} are there more than once. Rename all but one.")
