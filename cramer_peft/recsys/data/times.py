"""Timestamps as numbers in which no two different moments become equal."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.data.dates import iso_dates
from cramer_peft.recsys.data.table import Table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# parts of an ISO 8601 date: day and time to the second, fraction of a second, zone
_DATE = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)((?<=:\d\d:\d\d)\.\d+)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EXPECTED = (
    "expected a finite number, or in all {word}s a date such as 2024-01-31T12:00:00Z. Correct or remove {these}."
)


def parse_times(table: Table, name: str) -> pd.Series:
    """Return the timestamps in a column as numbers that keep their order.

    Whole numbers are int64. Dates are seconds since 1970, and without a zone they are UTC. Numbers with a fraction are
    float64, unless that would make different ones equal: then all are int64, in units of the smallest digit.
    """
    pd = require("pandas", extra="demo")
    column = table[name]
    text = column.map(str.strip)
    numbers = pd.to_numeric(text, errors="coerce")
    if numbers.isna().any():
        dates = text.map(_DATE.fullmatch)
        if dates.isna().any():
            dates = iso_dates(table, text).map(_DATE.fullmatch)
        if dates.notna().any():
            _check_zones(table, column, dates)
            text = dates.map(_seconds)
            numbers = pd.to_numeric(text, errors="coerce")
    floats = numbers.astype("float64")
    bad = column[~floats.between(float("-inf"), float("inf"), inclusive="neither")]  # NaN is not between either
    if len(bad):
        found = f"{bad.iloc[0].strip() or 'blank':.60}"
        table.refuse(bad, "{name} is {found} ({such}), " + _EXPECTED, name=name, found=found)
    if numbers.dtype == "int64":
        return numbers
    different = pd.DataFrame({"text": text, "float": floats}).drop_duplicates()
    equal = different[different["float"].duplicated(keep=False)]
    if equal["text"].map(Decimal).nunique() == equal["float"].nunique():
        return floats
    return _whole(table, text.map(Decimal))


def _check_zones(table: Table, column: pd.Series, dates: pd.Series) -> None:
    """Raise a DataError if only some dates name their zone: nobody can tell the order of the others."""
    zones = dates[dates.notna()].map(lambda found: found[3] or "")
    if (zones == "").any() and (zones != "").any():
        bad = column[zones.index[zones == ""]]
        message = (
            "{name} is {first}, a date without a zone, but other {word}s name theirs. Add the zone, such as Z, or "
            "leave out all."
        )
        table.refuse(bad, message, name=str(column.name))


def _seconds(date: re.Match[str] | None) -> str:
    """Return the seconds from 1970 to a date, as text; blank if there is no such date."""
    if date is None:
        return ""
    try:
        moment = datetime.fromisoformat(date[1]) - datetime(1970, 1, 1)
    except ValueError:  # a day that its month does not have
        return ""
    if date[3] not in (None, "Z"):
        digits = date[3].replace(":", "")
        moment -= timedelta(hours=int(digits[:3]), minutes=int(digits[0] + digits[3:]))
    seconds = moment.days * 86_400 + moment.seconds
    return str(seconds + Decimal(f"0{date[2]}") if date[2] else seconds)


def _whole(table: Table, numbers: pd.Series) -> pd.Series:
    """Return exact numbers as int64, in units of their smallest digit."""
    digits = max(0, -min(int(number.normalize().as_tuple().exponent) for number in numbers))
    whole = numbers.map(lambda number: int(number.scaleb(min(digits, 20))))
    if digits > 18 or whole.abs().max() >= 2**63:
        raise DataError(
            f"{table.source}: column {numbers.name!r} has different values that are equal as 64-bit numbers, such as "
            f"{numbers.iloc[0]}. Write whole numbers of 18 digits at most."
        )
    return whole.astype("int64")


def shown_time(time: float) -> str:
    """Return a time as a day, if it counts the seconds, or parts of them, since 1970 as of today; else as a number."""
    for digits in (0, 3, 6, 9):
        if 1e8 <= (seconds := time / 10**digits) < 1e10:
            return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).strftime("%Y-%m-%d")
    return f"{time:.17g}"
