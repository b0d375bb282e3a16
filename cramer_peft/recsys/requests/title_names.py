"""The names by which people call a titled item."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from cramer_peft.encoders import WORD, one_form
from cramer_peft.recsys.data.catalogue import without_entities

ARTICLES = frozenset({"the", "a", "an"})
FULL, ALTERNATIVE, FIRST_PART, LATER_PART, BEGINNING = range(5)  # how a name is related to the title, best first

_BRACKETS = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")
_YEAR = re.compile(r"(1[89]|20)\d\d(?:\s*[-–]\s*(?:\d{4})?)?")
_ALSO = re.compile(r"\s*(?:a\.?k\.?a\.?|also known as)\s*:?\s+", re.IGNORECASE)
_TRAILING = re.compile(r"(.+), (\w{1,4}'?)")  # an article of any language behind a comma
_PARTS = re.compile(r":\s+|\s+[-–—]\s+")
_ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
_LONGEST = 1000  # characters of a title that are looked at


@lru_cache(maxsize=100_000)
@lru_cache(maxsize=100_000)
def pieces(word: str) -> tuple[str, ...]:
    """Return the parts of a word by which titles are compared: "Spider-Man's" gives "spider", "mans"; "," nothing."""
    if word == "&":
        return ("and",)
    plain = "".join(char for char in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(char))
    parts = plain.replace("'", "").replace("’", "").split("-")
    return tuple(_ROMAN.get(part, part) for part in parts if part and part[0].isalnum())


def name_pieces(text: str) -> tuple[str, ...]:
    """Return the pieces of a text, without a leading article unless it is all there is."""
    found = tuple(piece for word in WORD.findall(one_form(text)) for piece in pieces(word))
    return found[1:] if len(found) > 1 and found[0] in ARTICLES else found


def year_in(title: str) -> int | None:
    """Return the year in brackets at the end of a title, if there is one."""
    found = re.search(r"[(\[]((?:1[89]|20)\d\d)[)\]]\s*$", title[-20:])
    return int(found[1]) if found else None


def names_of(title: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the names of a title, each with how it is related to it (``FULL`` … ``LATER_PART``), as pieces."""
    text = without_entities(title[:_LONGEST])
    brackets = [first or second for first, second in _BRACKETS.findall(text)]
    bare = " ".join(_BRACKETS.sub(" ", text).split())
    yield FULL, name_pieces(_moved(bare))
    if bare != text:
        yield FULL, name_pieces(text)
    for inside in brackets:
        if not _YEAR.fullmatch(inside.strip()):
            yield ALTERNATIVE, name_pieces(_moved(_ALSO.sub("", inside).strip()))
    parts = _PARTS.split(_moved(bare))
    if len(parts) > 1:
        yield FIRST_PART, name_pieces(parts[0])
        yield from ((LATER_PART, name_pieces(part)) for part in parts[1:])
        yield from ((FIRST_PART, name_pieces(" ".join(parts[:count]))) for count in range(2, len(parts)))


def _moved(name: str) -> str:
    """Return a name with an article behind a comma moved to the front."""
    found = _TRAILING.fullmatch(name)
    return f"{found[2]} {found[1]}" if found else name


def digits(name: Sequence[str]) -> set[str]:
    """Return the pieces that hold a digit; names that differ in these are different names."""
    return {piece for piece in name if any(char.isdigit() for char in piece)}
