"""Facts about an item that have to do with what was heard of a request: why it may have come or gone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cramer_peft.encoders import one_form
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.heard import Heard, HeardPart
from cramer_peft.recsys.requests.number_columns import Column

_SIDES = ("unwanted", "wanted", "neutral", "lacking")  # the first two if an item is what was heard


def reasons_for(
    catalogue: Catalogue, item: int, heard: Heard | None, columns: Sequence[Column], visits: Tensor
) -> list[dict[str, str]]:
    """Return a fact for each part of a request that the catalogue can tell something about.

    ``columns`` are its numbers, ``visits`` how often each item was met, (items,) float64.
    """
    found = dict.fromkeys(_fact(catalogue, item, part, columns, visits) for part in (heard.parts if heard else ()))
    return [{"text": text, "side": side} for side in _SIDES for text, own in found if text and own == side]


def _fact(
    catalogue: Catalogue, item: int, part: HeardPart, columns: Sequence[Column], visits: Tensor
) -> tuple[str, str]:
    """Return a fact and its side; "" if there is none."""
    meaning, side = part.meaning, "wanted" if part.wanted else "unwanted"
    if part.kind == "attribute":
        has = meaning in map(phrase, catalogue.attribute_names(item))
        return (meaning, side) if has else (f"not {meaning}" if part.wanted else "", "lacking")
    if part.kind == "title":
        return _likeness(catalogue, item, part.text, side)
    if part.kind == "number":
        values = {column.name: float(column.values[item]) for column in columns}
        facts = [f"{name} {value:g}" for name, value in values.items() if meaning.startswith(f"{name} ")]
        return (facts[0] if facts and "nan" not in facts[0] else ""), "neutral"
    if part.kind == "popularity":
        return f"met {float(visits[item]):g} times", "neutral"
    entries = {column: one_form(texts[item]).casefold().split("|") for column, texts in catalogue.texts.items()}
    column = next((column for column, own in entries.items() if meaning in own), "")
    return (f"“{meaning}” in its {column.replace('_', ' ')}" if column else ""), side


def _likeness(catalogue: Catalogue, item: int, name: str, side: str) -> tuple[str, str]:
    """Return how many attributes of the item that a request names another one shares."""
    try:
        other = catalogue.find_title(name)
    except DataError:
        return "", side
    title, theirs = catalogue.titles[other], catalogue.attribute_names(other)
    shared = len(set(theirs) & set(catalogue.attribute_names(item)))
    if item == other or not theirs:
        return (f"is {title}" if item == other else ""), side
    if not shared:
        return f"shares nothing with {title}", "lacking"
    return f"shares {shared} of {len(theirs)} with {title}", side if 2 * shared > len(theirs) else "neutral"
