"""The people that the page offers: made up from the catalogue, or users of a data set."""

from __future__ import annotations

import os
import random

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import POPULARITY, Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.datasets import read_dataset
from cramer_peft.recsys.data.tables import Tables, data_name

Person = tuple[str, list[int]]  # a name, and item indices, oldest first
_PEOPLE, _USERS = 12, 40
_TITLES, _LAST = 5, 20  # of a history that is made up; of a user's history


def visits_of(catalogue: Catalogue) -> Tensor:
    """Return how often each item was met in training, (items,) float64; ones if the catalogue does not know."""
    known = catalogue.numbers.get(POPULARITY)
    return torch.ones(len(catalogue)).double() if known is None else known.nan_to_num(0.0)


def made_up_people(catalogue: Catalogue) -> list[Person]:
    """Return one person for each of the most frequent attributes, with its best-known items; none shares an item."""
    visits = visits_of(catalogue) + 1
    frequent = catalogue.item_attributes.sum(0).argsort(descending=True, stable=True)[:_PEOPLE].tolist()
    people: list[Person] = []
    for place in reversed(frequent):  # the rare ones choose first, since fewer items have their attribute
        best = (visits * catalogue.item_attributes[:, place]).topk(min(_TITLES, len(catalogue) - 1))
        own = best.indices[best.values > 0].tolist()
        visits[own] = 0
        people += [(f"Fan of “{catalogue.attributes[place]}”", own[::-1])] if own else []
    return people[::-1]


def surprise(catalogue: Catalogue) -> Person:
    """Return somebody with items drawn at random, the well-known ones more often; they share an attribute if any."""
    weights = visits_of(catalogue) + 0.01
    attributes = catalogue.item_attributes[int(weights.multinomial(1))].nonzero().flatten().tolist()
    if attributes:
        weights = weights * catalogue.item_attributes[:, random.choice(attributes)]
    number = max(1, min(_TITLES, int((weights > 0).sum()), len(catalogue) - 1))
    return "A surprise", weights.multinomial(number).tolist()


def people_of(
    data: str | os.PathLike[str] | Tables, catalogue: Catalogue, columns: Columns | None = None
) -> list[Person]:
    """Return users of a data set with the last items of their histories, drawn at random if there are many.

    ``columns`` says what to read, as in training; None: the usual names.

    Raises:
        DataError: If the data cannot be read, or no user met an item of the catalogue.
    """
    reading = read_dataset(data, columns or Columns(), min_interactions=1)
    items, interactions = reading.items.catalogue, reading.interactions
    places = catalogue.positions
    known = [places.get(item_id, -1) for item_id in items.item_ids]
    people: list[Person] = []
    for user, sequence in zip(interactions.user_ids, interactions.sequences, strict=True):
        met = [known[item] for item in sequence.tolist() if known[item] >= 0]
        if 0 < len(met) < len(catalogue):
            people.append((f"User {user}: {len(met)} titles, last {catalogue.titles[met[-1]]}", met[-_LAST:]))
    if not people:
        raise DataError(f"{data_name(data)}: no user met an item of the recommender. Give the data it was trained on.")
    return random.Random(0).sample(people, min(_USERS, len(people)))
