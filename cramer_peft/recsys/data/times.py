"""Timestamps as numbers in which no two different moments become equal."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from cramer_peft.errors import DataError, require

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

# parts of an ISO 8601 date: day and time to the second, fraction of a second, zone
_DATE = re.compile(r"(\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)((?<=:\d\d:\d\d)\.\d+)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EXPECTED = (
    "expected a finite number, or in all lines an ISO 8601 date such as 2024-01-31T12:00:00Z. Correct these lines, or "
    "remove them"
)


def has_dates(column: pd.Series) -> bool:
    """Return True if a field's text holds an ISO 8601 date."""
    return any(_DATE.fullmatch(text.strip()) for text in column)


def parse_times(path: Path, column: pd.Series) -> pd.Series:
    """Return the timestamps of an atomic file, given as text, as numbers that keep their order.

    Whole numbers are int64. Dates are seconds since 1970, and without a zone they are UTC. Numbers with a fraction are
    float64, unless that would make different ones equal: then all are int64, in units of the smallest digit.
    """
    pd = require("pandas", extra="demo")
    text = column.map(str.strip)
    numbers = pd.to_numeric(text, errors="coerce")
    if numbers.isna().any() and has_dates(text):
        dates = text.map(_DATE.fullmatch)
        _check_zones(path, column, dates)
        text = dates.map(_seconds)
        numbers = pd.to_numeric(text, errors="coerce")
    floats = numbers.astype("float64")
    bad = column[~floats.between(float("-inf"), float("inf"), inclusive="neither")]  # NaN is not between either
    if len(bad):
        found = f"{bad.iloc[0].strip() or 'nan (blank)':.60}"
        raise DataError(f"{_place(path, bad)}: {column.name} is {found} ({len(bad)} such lines), {_EXPECTED}.")
    if numbers.dtype == "int64":
        return numbers
    different = pd.DataFrame({"text": text, "float": floats}).drop_duplicates()
    equal = different[different["float"].duplicated(keep=False)]
    if equal["text"].map(Decimal).nunique() == equal["float"].nunique():
        return floats
    return _whole(path, text.map(Decimal))


def _place(path: Path, bad: pd.Series) -> str:
    return f"{path}, line {int(bad.index[0]) + 2}"


def _check_zones(path: Path, column: pd.Series, dates: pd.Series) -> None:
    """Raise a DataError if only some dates name their zone: nobody can tell the order of the others."""
    zones = dates[dates.notna()].map(lambda found: found[3] or "")
    if (zones == "").any() and (zones != "").any():
        bad = column[zones.index[zones == ""]]
        raise DataError(
            f"{_place(path, bad)}: {column.name} is {bad.iloc[0]}, a date without a zone, but other lines name theirs. "
            "Add the zone, such as Z, or leave out all."
        )


def _seconds(date: re.Match[str] | None) -> str:
    """Return the seconds from 1970 to a date, as text; blank if there is no such date."""
    if date is None:
        return ""
    try:
        moment = datetime.fromisoformat(date[1]) - datetime(1970, 1, 1)
    except ValueError:  # a day that its month does not have
        return ""
    digits = (date[3] or "Z").replace(":", "").replace("Z", "+0000")
    offset = timedelta(hours=int(digits[:3]), minutes=int(digits[0] + digits[3:]))
    return str((moment - offset) // timedelta(seconds=1) + Decimal(f"0{date[2] or ''}"))


def _whole(path: Path, numbers: pd.Series) -> pd.Series:
    """Return exact numbers as int64, in units of their smallest digit."""
    digits = max(0, -min(int(number.normalize().as_tuple().exponent) for number in numbers))
    whole = numbers.map(lambda number: int(number.scaleb(min(digits, 20))))
    if digits > 18 or whole.abs().max() >= 2**63:
        raise DataError(
            f"{path}: field {numbers.name!r} has different values that are equal as 64-bit numbers, such as "
            f"{numbers.iloc[0]}. Write whole numbers of 18 digits at most."
        )
    return whole.astype("int64")
