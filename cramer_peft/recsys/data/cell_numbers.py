"""Numbers as people write them into cells: with currencies, with commas or points."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_MONEY = (
    r"(?:(?:US|CA|AU)?\$|[€£¥₹]|(?:EUR|USD|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|CAD|AUD|euros?|dollars?|kr|fr|zł|kč)"
    r"(?![^\W\d_])\.?)"
)
_NUMBER = re.compile(
    rf"(?:(?:ab|from|ca\.?)\s+)?({_MONEY}\s*)?([+-]?[\d.,'’\s]*\d\.?(?:e[+-]?\d+)?)(?:[.,][-–—]{{1,2}})?(\s*{_MONEY})?",
    re.IGNORECASE,
)
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")
_OTHER = {".": ",", ",": "."}


def read_numbers(cells: Sequence[str]) -> tuple[list[float], int | None]:
    """Return the number that each cell of a column states, with its currency or without; NaN if it states none.

    "1.299" is 1299 if other cells have a comma before the decimals. The second value is the place of the first such
    cell if no cell shows the sign: it is read with a point before the decimals. If the cells show both, it is NaN.
    """
    digits = [_digits(cell) for cell in cells]
    signs = [_sign(text) for text in digits]
    shown = {".", ","}.intersection(signs)
    usual = min(shown, default=".")
    read = zip(digits, signs, strict=True)
    values = [_value("" if own == "?" and len(shown) > 1 else text, own.replace("?", usual)) for text, own in read]
    return values, signs.index("?") if "?" in signs and not shown else None


def _digits(cell: str) -> str:
    """Return the digits and signs of the number in a cell; "" if there is none."""
    found = _NUMBER.fullmatch(cell)
    if found is None:
        return ""
    spaces = r"\s'’" if found[1] or found[3] else "\u00a0\u202f'’"  # "10 200" may be two numbers, "10 200 kr" is one
    return re.sub(rf"(?<=\d)[{spaces}](?=\d{{3}}(?!\d))", "", found[2])


def _sign(digits: str) -> str:
    """Return the sign before the decimals, "?" if it can be either, "" if there is none."""
    signs = re.sub(r"[^.,]", "", digits)
    if len(signs) == 1 and _EITHER.fullmatch(digits):
        return "?"
    return _OTHER[signs[0]] if len(signs) > 1 and len(set(signs)) == 1 else signs[-1:]


def _value(digits: str, sign: str) -> float:
    whole, _, decimals = digits.partition(sign) if sign else (digits, "", "")
    thousands = _OTHER.get(sign, "x")
    if re.fullmatch(rf"[+-]?\d{{1,3}}(?:[{thousands}]\d{{3}})+", whole):
        whole = whole.replace(thousands, "")
    try:
        value = float(f"{whole}.{decimals}" if decimals else whole)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
