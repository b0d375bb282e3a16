"""The separator of the attributes in a cell, found in the cells themselves where none was named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from cramer_peft.encoders import one_form
from cramer_peft.recsys.data.catalogue import without_entities
from cramer_peft.storage import parse_json

LIST = "[]"  # the separator of cells that are lists, such as ["a", "b"]
DEFAULTS = {"token": " ", "token_seq": " ", "float_seq": " ", "str": "|"}
_CANDIDATES = ("|", ";", ",", "/")
_OF_PATHS = (">", " / ")  # as in "Outdoor > Tents", in most cells
_WORDS = {" ": "spaces", "\t": "tabs", LIST: "the commas of lists in brackets"}
_NO_ATTRIBUTE = frozenset({"unknown", "(no genres listed)"})
_LEAST = 0.1  # share of the cells that hold a separator

_QUOTED = r"""(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""
_ENTRY = re.compile(_QUOTED + r"""|([^\s,\[\]'"][^,\[\]]*)""")
_NAMED = re.compile(r"""['"]name['"]\s*:\s*""" + _QUOTED)


def in_words(separator: str) -> str:
    """Return a separator as a person reads it."""
    return _WORDS.get(separator, repr(separator))


def no_attribute(text: str) -> bool:
    """Return True if a text is blank or says that there is no attribute."""
    return not text.strip() or text.strip().casefold() in _NO_ATTRIBUTE


def pieces_of(cell: str, separator: str) -> list[str]:
    """Return the attributes in a cell."""
    if no_attribute(cell):
        return []
    if separator == LIST:
        pieces = entries_of(cell)
    else:
        pieces = (without_entities(cell) if separator == ";" else cell).split(separator)
    return [one_form(piece).strip() for piece in pieces]


def is_list(cell: str) -> bool:
    """Return True if a cell is a list in brackets, as Python and JSON write them."""
    return cell.strip().startswith("[") and cell.strip().endswith("]")


def entries_of(cell: str) -> list[str]:
    """Return the entries of a list in brackets, of objects the values of "name"; other cells are one entry."""
    if not is_list(cell):
        return [cell]
    try:
        entries = parse_json(cell.encode())
    except ValueError:  # as Python writes it
        found = (_NAMED if "{" in cell else _ENTRY).findall(cell)
        return [re.sub(r"\\(.)", r"\1", "".join(groups)) for groups in found]
    return [str(entry.get("name", "") if isinstance(entry, dict) else entry) for entry in entries]


def found_separator(cells: Sequence[str], kind: str) -> str:
    """Return the separator that a field's cells show: lists in brackets, ">", "|", ";", "," or "/", else its type's.

    ">" and "/" between spaces separate the steps of a path, such as "Outdoor > Tents", if at least half of the cells
    have them.
    In fields of type ``str`` a comma can be part of one name ("Creams, Gels & Lotions"): there, and for "/", what is
    between must recur in other cells.
    """
    default = DEFAULTS[kind]
    filled = [cell.strip() for cell in cells if not no_attribute(cell)]
    if filled and sum(map(is_list, filled)) > 0.9 * len(filled):
        return LIST
    if default == "|" and any("|" in cell for cell in filled):
        return default
    for mark in () if any("|" in cell for cell in filled) else _OF_PATHS:
        if filled and 2 * sum(mark in cell and "<" not in cell for cell in filled) >= len(filled):
            return mark
    return next((mark for mark in _CANDIDATES if mark != default and _separates(mark, filled, default)), default)


def _separates(mark: str, cells: Sequence[str], default: str) -> bool:
    if mark == ";":
        cells = [without_entities(cell) for cell in cells]
    having = [cell for cell in cells if mark in cell]
    several = len(cells) if default == "|" else sum(" " in cell or mark in cell for cell in cells)
    if not having or len(having) < _LEAST * several:
        return False
    if mark == "/" and default == " " and not all(" / " in cell for cell in having) and any(" " in c for c in cells):
        return False  # "Sci-Fi/Fantasy Drama": one attribute of two
    return _recurs(mark, set(having), set(cells)) if default == "|" or mark == "/" else True


def _recurs(mark: str, having: Collection[str], cells: Collection[str]) -> bool:
    """Return True if at least half of the pieces of the cells with a mark are in other cells, too."""
    counts = Counter(piece for cell in cells for piece in {part.strip() for part in cell.split(mark)})
    pieces = [part.strip() for cell in having for part in cell.split(mark)]
    return sum(counts[piece] > 1 for piece in pieces) * 2 >= len(pieces)
