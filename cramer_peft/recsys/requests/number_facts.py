"""Numbers, years and sizes that a request names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.fact import Fact
from cramer_peft.recsys.requests.number_columns import Column, columns_of_numbers
from cramer_peft.recsys.requests.title_cues import ends_there

INFINITE = float("inf")
_EXTREME, _NEAR_EXTREME = 0.2, 0.4  # share of the items that "cheap" means in full, and at all
_FEWEST_COMPARED = 5  # items of an attribute among which some are cheap
_YEARS = (1000, 2999)

# The table of words for size and time: what they measure, and which end of it is meant.
_SIZES = {
    "recent new newer newest latest modern contemporary": ("year", 1),
    "old older oldest vintage": ("year", -1),
    "cheap cheaper cheapest inexpensive affordable": ("money", -1),
    "expensive pricey": ("money", 1),
    "short shorter shortest": ("length", -1),
    "long longer longest lengthy": ("length", 1),
}
_SIZE = {word: meant for words, meant in _SIZES.items() for word in words.split()}
# Uses of these words that measure nothing.
_NO_SIZE_AFTER = re.compile(
    r"(?:^| )(?:years?|gets?|getting|feels?|feeling|good|in|so|as|how|all|before|no|what's|what is|\d+|your|my|his|her|"
    r"their|our)$"
)
_NO_SIZE_BEFORE = re.compile(
    r"(?:york|zealand|orleans|jersey|england|year|years|to|here|time|times|way|day|days|week|weekend|ago|as|run|drive|"
    r"trip|flight|of|on|kids|children|people|folks|enough|version|school|fashioned|friends?|job|man|woman|lady|baby|town|house|phone)\b"
)

_COUNTED = "zero one two three four five six seven eight nine ten eleven twelve"
_WORDS_FOR_NUMBERS = {word: number for number, word in enumerate(_COUNTED.split())}
_WORDS_FOR_NUMBERS |= {"fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}
_WORDS_FOR_NUMBERS |= {"ninety": 90, "hundred": 100, "a": 1, "an": 1}
_TENS = {"twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60, "seventies": 70}
_TENS |= {"eighties": 80, "nineties": 90, "noughties": 0}
_UNITS = {
    "money": r"(?:\$|€|£|dollars?|bucks|euros?|pounds?|usd|eur|gbp)",
    "minutes": r"(?:minutes?|mins?)",
    "hours": r"(?:hours?|hrs?)",
    "pages": r"pages?",
}
_SECONDS = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
_NUMBER = (
    r"(?:\d{1,3} , \d{3}|\d+(?: \. \d+)?|" + "|".join(w for w in _WORDS_FOR_NUMBERS if len(w) > 2) + r"|an?(?= hour))"
)
_AMOUNT = (
    rf"(?:(?P<sign>[$€£]) )?(?P<number>{_NUMBER})(?P<half> and a half)?"
    rf"(?: (?P<unit>{'|'.join(_UNITS.values())})(?!\S))?(?P<half2> and a half)?"
)
_BELOW = (
    r"under|below|less than|fewer than|lower than|cheaper than|shorter than|within|before|prior to|earlier than|"
    r"older than|up to|at most|no more than|not more than|no longer than|not longer than|maximum|max|until|"
    r"no later than"
)
_ABOVE = (
    r"over|above|more than|greater than|higher than|longer than|after|later than|newer than|at least|no less than|"
    r"not less than|minimum|since|no older than|not older than|no earlier than"
)
_INCLUSIVE = re.compile(r"up to|at most|at least|(?:no|not) \w+ than|max|min|since|within|until")
_FOR_YEARS = re.compile(r"before|prior|earlier|older|until|after|later|newer|since")
_FOR_MONEY, _FOR_LENGTH = re.compile(r"cheaper"), re.compile(r"shorter|longer")
_FROM = r"(?:(?:from|in|of|during|made in|released in|set in) )?(?:the )?"
_YEAR = r"(?:1[89]|20)\d\d"


class NumberFinder:
    """Finds numbers, years and words for size and time in requests.

    Args:
        catalogue: The items.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._columns = columns_of_numbers(catalogue)
        self._extremes: dict[tuple[str, int], tuple[str, Tensor]] = {}
        self._rules: list[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[Column, float, float] | None]]] = [
            (_spoken(rf"(?:between|from) (?P<low>{_NUMBER}) (?:and|to|until|till|-|–) {_AMOUNT}"), self._between),
            (_spoken(rf"{_FROM}(?P<low>{_YEAR}) ?[-–] ?(?P<number>{_YEAR})"), self._years_between),
            (
                _spoken(rf"(?:from )?(?P<low>{_YEAR}) (?:onwards?|on|or later|or newer|and later|and newer)"),
                self._since,
            ),
            (_spoken(rf"(?:from )?(?P<high>{_YEAR}) (?:or earlier|or older|and earlier|and older)"), self._until),
            (_spoken(rf"(?:from )?(?P<how>{_BELOW}|{_ABOVE})(?: the)? {_DECADE}"), self._beside_decade),
            (_spoken(rf"{_FROM}(?:(?P<part>early|mid|late)[ -])?{_DECADE}"), self._decade),
            (_spoken(rf"(?:from )?(?P<how>{_BELOW}|{_ABOVE})(?: of)? {_AMOUNT}"), self._compared),
            (
                _spoken(r"(?:from |of |in )?(?:the )?(?:last|past) (?P<count>\S+ )?(?P<span>years?|decades?)"),
                self._last,
            ),
            (_spoken(rf"(?:from|in|of|during|year|made in|released in) (?P<low>{_YEAR})"), self._one_year),
            (_spoken(rf"(?P<low>{_YEAR})(?! :)"), self._one_year),
        ]

    def find(self, words: Sequence[str]) -> list[Fact]:
        """Return the numbers, each as a fact, those first that count before others; see :meth:`CatalogueFacts.find`."""
        if not self._columns:
            return []
        text = " ".join(words).replace("’", "'")
        places = {start: place for place, start in enumerate(accumulate((len(word) + 1 for word in words), initial=0))}
        return [*self._by_rules(text, places), *self._sizes(words)]

    def _by_rules(self, text: str, places: dict[int, int]) -> Iterator[Fact]:
        for pattern, meaning in self._rules:
            for found in pattern.finditer(text):
                start, stop = places.get(found.start()), places.get(found.end() + 1)
                meant = meaning(found) if start is not None and stop is not None else None
                if meant and start is not None and stop is not None:
                    column, low, high = meant
                    members = ((column.values >= low) & (column.values <= high)).float()
                    if members[: column.described].any():
                        yield Fact(start, stop, "number", _meaning(column, low, high, found), members)

    def _sizes(self, words: Sequence[str]) -> Iterator[Fact]:
        for place, word in enumerate(words):
            role, end = _SIZE.get(word, ("", 0))
            column = self._first(role)
            if column is None or not _measures(words, place):
                continue
            if (role, end) not in self._extremes:
                self._extremes[role, end] = _extreme(column, end)
            meaning, members = self._extremes[role, end]
            among = partial(_extreme_among, column, end)
            yield Fact(place, place + 1, "number", meaning, members.clone(), among=among)

    def _first(self, role: str) -> Column | None:
        return next((column for column in self._columns if column.role == role), None)

    def _compared(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        how, number = found["how"], _amount(found)
        column = self._column_for(found, number)
        if column is None:
            return None
        number *= _factor(found, column)
        inclusive = bool(_INCLUSIVE.match(how))
        if _is_below(how):
            return column, -INFINITE, number if inclusive else _beside(number, -INFINITE)
        return column, number if inclusive else _beside(number, INFINITE), INFINITE

    def _between(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        low, high = _number(found["low"]), _amount(found)
        column = self._column_for(found, high)
        if column is None or low > high:
            return None
        factor = _factor(found, column)
        return column, low * factor, high * factor

    def _column_for(self, found: re.Match[str], number: float) -> Column | None:
        """Return the column that a number is of: by its unit, its neighbours, its size, or as the only one."""
        how, unit = found.groupdict().get("how") or "", _unit(found)
        if unit:
            columns = [column for column in self._columns if _measured_in(column, unit)]
            return columns[0] if columns else None
        if _FOR_MONEY.search(how):
            return self._first("money")
        if _FOR_LENGTH.search(how):
            return self._first("length")
        beside = _beside_words(found)
        is_year = float(number).is_integer() and _YEARS[0] <= number <= _YEARS[1]
        named = [column for column in self._columns if column.words & beside and (is_year or column.role != "year")]
        if named:
            return named[0]
        if _FOR_YEARS.search(how) or (is_year and self._first("year")):
            return self._first("year") if is_year else None
        if not _ends(found) or re.search(r"(?:kids|children|people|aged?|ages)(?: \w+)?$", _before(found)):
            return None
        other = [column for column in self._columns if column.role != "year"]
        return self._first("money") or (other[0] if len(other) == 1 else None)

    def _years_between(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        return self._years(float(found["low"]), float(found["number"]))

    def _since(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        return self._years(float(found["low"]), INFINITE)

    def _until(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        return self._years(-INFINITE, float(found["high"]))

    def _one_year(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        in_brackets = _before(found).endswith("(")
        return None if in_brackets else self._years(float(found["low"]), float(found["low"]))

    def _years(self, low: float, high: float) -> tuple[Column, float, float] | None:
        column = self._first("year")
        return None if column is None or low > high else (column, low, high)

    def _decade(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        if re.search(r"(?:^| )(?:in|into) (?:my|your|his|her|their|our)$", _before(found)):
            return None  # an age
        first, years = self._decade_of(found)
        early, late = {"early": (0, 3), "mid": (4, 6), "late": (7, 9)}.get(found["part"] or "", (0, years - 1))
        return self._years(first + early, first + late)

    def _beside_decade(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        if not _FOR_YEARS.search(found["how"]):
            return None
        first, years = self._decade_of(found)
        inclusive = bool(_INCLUSIVE.match(found["how"]))
        if _is_below(found["how"]):
            return self._years(-INFINITE, first + years - 1 if inclusive else _beside(first, -INFINITE))
        return self._years(first if inclusive else _beside(first + years - 1, INFINITE), INFINITE)

    def _decade_of(self, found: re.Match[str]) -> tuple[float, int]:
        """Return the first year of a decade, and its number of years: 100 for "1800s"."""
        said = found["decade"]
        digits = "".join(char for char in said if char.isdigit())
        if len(digits) == 4:
            return float(digits), 100 if digits.endswith("00") and digits < "2000" else 10
        tens = int(digits) if digits else _TENS[said]
        column = self._first("year")
        newest = column.highest if column else 0.0
        return (2000.0 + tens if 2000 + tens <= newest else 1900.0 + tens), 10

    def _last(self, found: re.Match[str]) -> tuple[Column, float, float] | None:
        """Return the last years before the newest item's."""
        column = self._first("year")
        count = _number((found["count"] or "one").strip())
        if column is None or count != count:
            return None
        newest = column.highest
        years = count * (10 if found["span"].startswith("decade") else 1)
        return column, newest - years + 1, INFINITE


_DECADE = r"(?:' )?(?P<decade>(?:1[89]|20)?\d0'?s|" + "|".join(_TENS) + r")"


def _spoken(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S){pattern}(?!\S)")


def _number(said: str) -> float:
    """Return a number said in digits or words, NaN if it is none."""
    plain = said.replace(" , ", "").replace(" ", "")
    if plain in _WORDS_FOR_NUMBERS:
        return float(_WORDS_FOR_NUMBERS[plain])
    try:
        return float(plain[:30])
    except ValueError:
        return float("nan")


def _amount(found: re.Match[str]) -> float:
    return _number(found["number"]) + 0.5 * bool(found["half"] or found["half2"])


def _unit(found: re.Match[str]) -> str:
    said = found["sign"] or found["unit"] or ""
    return next((unit for unit, pattern in _UNITS.items() if said and re.fullmatch(pattern, said)), "")


def _measured_in(column: Column, unit: str) -> bool:
    if unit == "money":
        return column.role == "money"
    return column.role == "length" and (unit == "pages") == (column.unit == "pages")


def _factor(found: re.Match[str], column: Column) -> float:
    """Return how many of a column's units the unit that is said has."""
    unit = _unit(found)
    return _SECONDS[unit] / _SECONDS[column.unit] if unit in _SECONDS and column.unit in _SECONDS else 1.0


def _is_below(how: str) -> bool:
    return bool(re.fullmatch(_BELOW, how))


def _beside(number: float, towards: float) -> float:
    """Return the nearest number to one, for a limit that is not itself meant."""
    return float(torch.nextafter(torch.tensor(number, dtype=torch.float64), torch.tensor(towards, dtype=torch.float64)))


def _before(found: re.Match[str]) -> str:
    return found.string[max(0, found.start() - 60) : found.start()].rstrip()


def _after(found: re.Match[str]) -> list[str]:
    return found.string[found.end() : found.end() + 60].split()


def _beside_words(found: re.Match[str]) -> set[str]:
    """Return the words right before and right after a number, with their singulars."""
    near = [*_before(found).split()[-2:], *_after(found)[:1]]
    return {form for word in near for form in (word, word.removesuffix("s"), f"{word}s")}


def _ends(found: re.Match[str]) -> bool:
    """Return True if no word follows that the number could count."""
    return ends_there(_after(found), 0)


def _measures(words: Sequence[str], place: int) -> bool:
    """Return True if a word for size or time is used to measure: not in "new york" or "as long as"."""
    before, after = " ".join(words[max(0, place - 3) : place]), " ".join(words[place + 1 : place + 3])
    return not _NO_SIZE_AFTER.search(before) and not _NO_SIZE_BEFORE.match(after)


def _extreme(column: Column, end: int) -> tuple[str, Tensor]:
    """Return the meaning and the members of the highest (``end`` 1) or the lowest (-1) numbers of a column."""
    limit, fade = column.extreme(end, _EXTREME), column.extreme(end, _NEAR_EXTREME)
    low, high = (limit, INFINITE) if end > 0 else (-INFINITE, limit)
    return _meaning(column, low, high), _graded(column.values, limit, fade)


def _extreme_among(column: Column, end: int, items: Tensor) -> tuple[str, Tensor] | None:
    """Do as :func:`_extreme` among some items, (items,) bool: a cheap tent is cheap for a tent."""
    own = replace(column, values=torch.where(items, column.values, torch.nan))
    return _extreme(own, end) if len(own.known) >= _FEWEST_COMPARED and own.is_useful else None


def _graded(values: Tensor, limit: float, fade: float) -> Tensor:
    """Return 1 for numbers beyond a limit, falling to 0 at ``fade``, and 0 where a number is unknown."""
    beyond = (values >= limit) if limit > fade else (values <= limit)
    if limit == fade:
        beyond = values == limit
    part = (values - fade) / (limit - fade) if limit != fade else torch.zeros_like(values)
    return torch.where(beyond, torch.ones_like(part), part).nan_to_num(0.0).clamp(0, 1).float()


def _meaning(column: Column, low: float, high: float, found: re.Match[str] | None = None) -> str:
    how = (found.groupdict().get("how") or "") if found else ""
    strict = bool(how) and not _INCLUSIVE.match(how)
    if low == high:
        return f"{column.name} {low:g}"
    if low == -INFINITE:
        return f"{column.name} {_word(column, strict, 'before', 'under', 'up to', 'at most')} {_shown(high, strict)}"
    if high == INFINITE:
        return f"{column.name} {_word(column, strict, 'after', 'over', 'from', 'at least')} {_shown(low, strict)}"
    return f"{column.name} {low:g} to {high:g}"


def _word(column: Column, strict: bool, year: str, number: str, year_too: str, number_too: str) -> str:
    if column.role == "year":
        return year if strict else year_too
    return number if strict else number_too


def _shown(limit: float, strict: bool) -> str:
    return f"{limit:.6g}"
