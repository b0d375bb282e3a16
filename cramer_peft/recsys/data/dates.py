"""Dates as people write them, as ISO 8601."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cramer_peft.recsys.data.table import Table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = r"(?:,?[T ]\s*(\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?)\s*([AaPp][Mm])?)?\s*(Z|UTC|GMT|[+-]\d\d:?\d\d)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})[-/.](\d{{1,2}})[-/.](\d{{1,2}}){_TIME}", re.ASCII)
_YEAR_LAST = re.compile(rf"(\d{{1,2}})[-/.](\d{{1,2}})[-/.](\d{{4}}){_TIME}", re.ASCII)
_NAMED = re.compile(
    rf"(?:(?:[A-Za-z]{{3,9}},? )?(\d{{1,2}})[ -]([A-Za-z]{{3,9}})\.?[ -](\d{{4}})|"
    rf"([A-Za-z]{{3,9}})\.? (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}})){_TIME}",
    re.ASCII,
)


def iso_dates(table: Table, column: pd.Series) -> pd.Series:
    """Return a column with the dates of common formats as ISO 8601; other cells stay as they are.

    Raises:
        DataError: If nobody can tell which of two numbers is the month, as in 03/04/2024, or both orders are there.
    """
    swapped = column[column.map(lambda cell: bool(_YEAR_LAST.fullmatch(cell.strip())))]
    order = _day_first(table, swapped) if len(swapped) else True
    return column.map(lambda cell: _iso(cell.strip(), order))


def year_of(cell: str) -> int | None:
    """Return the year of a date, in whatever order it is written; None if the cell is none."""
    if found := _YEAR_FIRST.fullmatch(cell):
        return int(found[1])
    if found := _YEAR_LAST.fullmatch(cell):
        return int(found[3])
    found = _NAMED.fullmatch(cell)
    return int(found[3] or found[6]) if found else None


def _day_first(table: Table, dates: pd.Series) -> bool:
    """Return True if the first number of all dates is the day."""
    if dates.str.contains(".", regex=False).all():
        return True  # 31.01.2024 is written in no other order
    parts = dates.str.strip().str.extract(r"^(\d+)[-/.](\d+)").astype(int)
    days, months = parts[0] > 12, parts[1] > 12
    if days.any() and months.any():
        message = (
            "column {name!r} holds {first!r}, whose first number is the month, but in other {word}s it is the day."
        )
        table.refuse(dates[months], f"{message} Write all as 2024-01-31.", name=str(dates.name))
    if not days.any() and not months.any():
        message = "column {name!r} holds {first!r}: the day can be the first number or the second, in all {word}s."
        table.refuse(dates, f"{message} Write them as 2024-01-31.", name=str(dates.name))
    return bool(days.any())


def _iso(cell: str, day_first: bool) -> str:
    if found := _YEAR_FIRST.fullmatch(cell):
        year, month, day = found.groups()[:3]
    elif found := _YEAR_LAST.fullmatch(cell):
        year, day, month = found[3], *((found[1], found[2]) if day_first else (found[2], found[1]))
    elif found := _NAMED.fullmatch(cell):
        day, name, year = (found[1], found[2], found[3]) if found[1] else (found[5], found[4], found[6])
        if name[:3].lower() not in _MONTHS:
            return cell
        month = str(_MONTHS.index(name[:3].lower()) + 1)
    else:
        return cell
    clock, half, zone = found.groups()[-3:]
    return f"{year}-{int(month):02}-{int(day):02}{_clock(clock, half)}{_zone(zone)}"


def _clock(clock: str | None, half: str | None) -> str:
    if clock is None:
        return ""
    hours, _, rest = clock.partition(":")
    hour = int(hours) if half is None else int(hours) % 12 + 12 * (half.lower() == "pm")
    return f"T{hour:02}:{rest}"


def _zone(zone: str | None) -> str:
    return "" if zone is None else "Z" if zone in ("UTC", "GMT") else zone
