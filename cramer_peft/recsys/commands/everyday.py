"""Everyday requests that a catalogue can answer, for the last screen of the demo."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cramer_peft.recsys.data.catalogue import POPULARITY, Catalogue
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.number_columns import shown_year, years_of

_NUMBER = 3
_ENOUGH = 10  # items of a decade


def everyday_requests(recommender: RequestRecommender) -> list[str]:
    """Return three requests of different kinds, each about what the catalogue holds; fewer if fewer are heard."""
    found: list[str] = []
    for text in _candidates(recommender.catalogue):
        heard = recommender.hear(text)
        if heard is None or (heard.parts and not heard.missed):
            found.append(text)
    return found[:_NUMBER]


def shown_title(catalogue: Catalogue, item: int) -> str:
    """Return an item's title with its year, if it is known and no part of the title, and its attributes."""
    years, title = years_of(catalogue), catalogue.titles[item]
    year = "" if years is None else shown_year(title, float(years[item]))
    facts = [year] if year else []
    return f"{catalogue.titles[item]} ({', '.join([*facts, *catalogue.attribute_names(item)])})"


def _candidates(catalogue: Catalogue) -> Iterator[str]:
    """Yield requests by a title, by years, by how well known items are, and by attributes."""
    visits = catalogue.numbers.get(POPULARITY)
    yield f"something like {catalogue.titles[0 if visits is None else int(visits.nan_to_num(0).argmax())]}"
    decade = first_decade(catalogue)
    if decade is not None:
        yield f"something from the {decade}s"
    if visits is not None:
        yield "hidden gems, not the usual blockbusters"
    if len(catalogue.attributes) > 1:
        order = catalogue.item_attributes.sum(0).argsort(descending=True, stable=True).tolist()
        wanted, unwanted = (phrase(catalogue.attributes[place]) for place in (order[-1], order[0]))
        yield f"something with {wanted}, but no {unwanted}"


def first_decade(catalogue: Catalogue) -> int | None:
    """Return the earliest decade that a list can be filled from, None if the catalogue has no years."""
    years = years_of(catalogue)
    if years is None:
        return None
    decades, counts = (years[~torch.isnan(years)] // 10 * 10).unique(return_counts=True)
    enough = decades[counts >= _ENOUGH].tolist()
    return int(enough[0]) if enough else None
