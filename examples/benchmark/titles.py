"""Find the items of a catalogue by title and year."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue

_ARTICLES = "the|a|an|la|le|les|l'|il|lo|gli|el|los|las|un|une|der|die|das|ein|eine"
_TRAILING_ARTICLE = re.compile(rf"(.*), ({_ARTICLES})", re.DOTALL)
_YEAR = re.compile(r"(.*)\(([0-9]{4})\)", re.DOTALL)
_BRACKETS = re.compile(r"\(([^()]*)\)")
_KNOWN_AS = re.compile(r"\s*a\.?k\.?a\.?\s+", re.IGNORECASE)
_WORDS = re.compile(r"\w+")


class TitleIndex:
    """An index of a catalogue's items by title and year, whatever the spelling of the title.

    Case, accents, punctuation and repeated spaces are ignored, "&" is "and", and a trailing article counts as a
    leading one ("Matrix, The" is "The Matrix"). A title with other names in brackets ("Seven (a.k.a. Se7en)")
    is found by each of them.

    Args:
        catalogue: The items.
        years: The year of each item, or None; by default the four digits in brackets at the end of the title, or
            else of the id.

    Raises:
        DataError: If there is not one year for each item.
    """

    def __init__(self, catalogue: Catalogue, years: Sequence[int | None] | None = None) -> None:
        if years is not None and len(years) != len(catalogue):
            raise DataError(f"years: found {len(years)}, expected one for each of the {len(catalogue)} items.")
        self._items: defaultdict[str, list[tuple[int, int | None]]] = defaultdict(list)
        for item, (item_id, full) in enumerate(zip(catalogue.item_ids, catalogue.titles, strict=True)):
            title, year = split_year(full)
            if years is not None:
                year = years[item]
            elif year is None:
                year = split_year(item_id)[1]
            for key in {title_key(name) for name in _names(title)} - {""}:
                self._items[key].append((item, year))

    def find(self, title: str) -> tuple[int, ...]:
        """Return the indices of all items that ``title`` may mean, rising.

        Args:
            title: A year in brackets at its end selects the items of that year or, if there are none, those of an
                unknown year; without it, items of any year are found.
        """
        name, year = split_year(title)
        items = self._items.get(title_key(name), [])
        if year is None:
            return tuple(item for item, _ in items)
        same = tuple(item for item, known in items if known == year)
        return same or tuple(item for item, known in items if known is None)


def split_year(title: str) -> tuple[str, int | None]:
    """Return a title without the year in brackets at its end, and that year or None."""
    title = title.strip()
    found = _YEAR.fullmatch(title)
    name = found[1].strip() if found else ""
    return (name, int(found[2])) if found and name else (title, None)


def title_key(title: str) -> str:
    """Return the form of a title in which two spellings are compared: see :class:`TitleIndex`."""
    # twice: "™" and "🄐" become capital letters only when they are decomposed
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", title.casefold()).casefold())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    plain = plain.replace("\u2019", "'").strip()
    found = _TRAILING_ARTICLE.fullmatch(plain)
    if found:
        plain = found[2] + ("" if found[2].endswith("'") else " ") + found[1]
    return " ".join(_WORDS.findall(plain.replace("'", "").replace("&", " and ")))


def _names(title: str) -> Iterator[str]:
    """Yield the title as it is, the title without its brackets, and the text of each bracket."""
    yield title
    inside = _BRACKETS.findall(title)
    if inside:
        yield _BRACKETS.sub(" ", title)
        for name in inside:
            yield _KNOWN_AS.sub("", name, count=1) if _KNOWN_AS.match(name) else name


def read_years(item_path: str | os.PathLike[str], column: str = "release_year") -> tuple[int | None, ...]:
    """Read each item's year from an ``.item`` file, in the file's order, which is the catalogue's.

    Args:
        item_path: The file.
        column: Its field of years, of type ``token`` or ``float``; blank for an unknown year.

    Raises:
        DataError: If the file is not an atomic file, has no such field, or a year is no whole number.
        MissingExtraError: If pandas is not installed.
    """
    table = read_atomic(item_path)
    if column not in table.names:
        raise DataError(
            f"{item_path}: fields missing: {column}; fields there: {', '.join(table.names)}. Name another one."
        )
    return tuple(_year(item_path, line, value) for line, value in enumerate(table[column], start=2))


def _year(path: str | os.PathLike[str], line: int, value: str) -> int | None:
    text = value.strip()
    if text.lower() in ("", "nan"):
        return None
    found = re.fullmatch(r"([0-9]{1,4})(\.0)?", text)
    if not found:
        raise DataError(f"{path}, line {line}: the year is {text!r}, expected a whole number.")
    return int(found[1])
