"""A history written as one text: titles with ";" between them."""

from __future__ import annotations

from collections.abc import Sequence

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue, check_text, title_form, without_entities

_ID = "item_id="


def read_history(text: str, catalogue: Catalogue) -> list[int]:
    """Return the indices of the items that a text names, in its order.

    ";" separates titles, but not where it ends an HTML entity (``Tom &amp; Jerry``) or belongs to a title of the
    catalogue (``Steins;Gate``). Whole titles win over parts of titles. ``item_id=7`` names an item by its id.

    Raises:
        DataError: If the text is blank, can be read in several ways, or names an item that is not found or not unique.
    """
    check_text("history", text)
    pieces = [piece.strip() for piece in without_entities(text).split(";") if piece.strip()]
    if not pieces:
        raise DataError('the history is empty. Give at least one title: --history "Alien; Blade Runner".')
    ways, names = _read(pieces, catalogue)
    if ways > 1:
        shown = " | ".join(names)
        raise DataError(
            f"the history {text!r} can be read in {ways} ways, such as {shown!r}, because titles of the catalogue hold "
            f"a ';' themselves. Name the items by their ids: {_ID}…; {_ID}…"
        )
    return [
        catalogue.index_of(name[len(_ID) :]) if name.startswith(_ID) else catalogue.find_title(name) for name in names
    ]


def _read(pieces: Sequence[str], catalogue: Catalogue) -> tuple[int, list[str]]:
    """Return in how many ways pieces make up titles with the fewest that are not whole, and one way as titles."""
    divided = [form for form in catalogue.title_forms if ";" in form]
    longest = 1 + max((form.count(";") for form in divided), default=0)
    best: list[tuple[int, int, list[str]]] = [(0, 1, [])]  # for the last 0, 1, … pieces: parts, ways, titles
    for start in reversed(range(len(pieces))):
        found = []
        for stop in range(start + 1, min(start + longest, len(pieces)) + 1):
            name = ";".join(pieces[start:stop])
            whole = catalogue.has_title(name) or (stop == start + 1 and name.startswith(_ID))
            if whole or stop == start + 1 or any(title_form(name) in form for form in divided):
                parts, ways, names = best[len(pieces) - stop]
                found.append((parts + (not whole), ways, [name, *names]))
        least = min(parts for parts, _, _ in found)
        equal = [one for one in found if one[0] == least]
        best.append((least, sum(ways for _, ways, _ in equal), equal[0][2]))
    return best[-1][1:]
