"""A user's own data set: loaded, split and checked for use, with the requests that its file states."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import SAID, Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.datasets import read_dataset
from cramer_peft.recsys.data.interactions import Interactions
from cramer_peft.recsys.data.splits import Split, Stage, TemporalSplit, leave_one_out, temporal_split
from cramer_peft.recsys.data.table import counted
from cramer_peft.recsys.data.tables import Tables, data_name

Protocol = Literal["leave-one-out", "temporal"]
PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal")
LIST_LENGTH = 10  # of the lists that are evaluated


@dataclass(frozen=True, eq=False)
class OwnData:
    """A data set that is ready for training and evaluation: its name, and what was read and split."""

    name: str
    catalogue: Catalogue
    interactions: Interactions
    split: Split
    protocol: Protocol
    columns: Columns = field(default_factory=Columns)  # as they were found
    reading: tuple[str, ...] = ()  # lines that say how the tables were read
    stated: Mapping[tuple[str, str], str] | None = None  # (user, item) → request; None: there is no column of requests

    def describe(self) -> str:
        """Return lines on what was read, how, and what was left out."""
        visits = sum(map(len, self.interactions.sequences))
        found, users = self.interactions, counted(len(self.interactions), "user")
        items, attributes = counted(len(self.catalogue), "item"), counted(len(self.catalogue.attributes), "attribute")
        parts = [f"{counted(visits, 'visit')} of {users}, {items}, {attributes}"]
        if found.dropped_repeats:
            parts.append(f"{counted(found.dropped_repeats, 'more visit')} to an item that the user had met left out")
        if found.dropped_users:
            parts.append(f"{counted(found.dropped_users, 'user')} with fewer than 3 items left out")
        if self.columns.min_rating is not None:
            ratings = counted(found.dropped_ratings, "interaction")
            parts.append(f"{ratings} rated below {self.columns.min_rating:g} left out")
        if found.tied_users:
            tied = counted(found.tied_users, "user")
            parts.append(f"{tied} with items of equal time, which the order of the file's lines sorts")
        if isinstance(self.split, TemporalSplit):
            counts = self.split.validation.users, self.split.test.users
            parts.append(f"{counts[0]:,} users validate, {counts[1]:,} test")
        return "\n".join(["; ".join(parts), *self.reading])

    @property
    def states_requests(self) -> bool:
        """True if the interactions have a column of requests."""
        return self.stated is not None

    def own_requests(self, stage: Stage) -> tuple[str | None, ...] | None:
        """Return the request stated for each target of a stage, or None; None if there is no such column."""
        if self.stated is None:
            return None
        pairs = zip(self.split.users(stage).tolist(), self.split.target(stage).tolist(), strict=True)
        return tuple(self._text(user, item) for user, item in pairs)

    def training_requests(self) -> tuple[tuple[str | None, ...], ...]:
        """Return the request stated for each training item of each history of ``split.train``, or None."""
        known = isinstance(self.split, TemporalSplit)
        users = self.split.train_users.tolist() if known else range(len(self.split.train))  # type: ignore[attr-defined]
        pairs = zip(users, self.split.train, strict=True)
        return tuple(tuple(self._text(user, item) for item in items.tolist()) for user, items in pairs)

    def said(self) -> list[tuple[Tensor, str, int]]:
        """Return (history before, text, item) of each training visit that states a request, but for first visits."""
        return said_before(self.split, self.training_requests()) if self.stated else []

    def describe_requests(self) -> str | None:
        """Return a line with how many requests the training states, by what share of users, and one of them."""
        texts = self.training_requests() if self.stated else ()
        asking = [[text for text in row if text is not None] for row in texts]
        if not any(asking):
            return None
        users = sum(map(bool, asking))
        example = next(row[0] for row in asking if row)
        return (
            f"{sum(map(len, asking)):,} training visits of {users:,} users ({users / len(asking):.0%}) state a "
            f"request, such as {example[:80]!r}"
        )

    def _text(self, user: int, item: int) -> str | None:
        return (self.stated or {}).get((self.interactions.user_ids[user], self.catalogue.item_ids[item]))


def load_own_data(
    data: str | os.PathLike[str] | Tables,
    protocol: Protocol = "leave-one-out",
    columns: Columns | None = None,
    attributes: bool | None = None,
) -> OwnData:
    """Read a data set by name, folder or tables, split it, and check that it can be trained on and evaluated.

    ``attributes`` says whether requests need some; None: they do if the data states no request.
    """
    check_protocol(protocol)
    reading = read_dataset(data, columns or Columns(), 1 if protocol == "temporal" else 3)
    interactions, items = reading.interactions, len(reading.items.catalogue)
    split = temporal_split(interactions) if protocol == "temporal" else leave_one_out(interactions)
    check_room(split.history("test"), items)
    visits = torch.bincount(torch.cat(split.train), minlength=items)  # of training alone
    catalogue = reading.items.catalogue.with_popularity(visits)
    own = OwnData(
        data_name(data), catalogue, interactions, split, protocol, reading.columns, reading.lines, reading.requests()
    )
    if own.states_requests:
        own = replace(own, catalogue=with_said(catalogue, split, own.training_requests()))
    if not catalogue.attributes and (attributes or (attributes is None and not own.said())):
        raise DataError(
            f"{own.name}: no attribute is on {own.columns.min_attribute_items} or more items, but requests ask for "
            f"attributes, and column {own.columns.attribute_column!r} serves as them. Name another one by "
            "attribute_column (--attributes) and its separator by attribute_separator, or lower min_attribute_items, "
            'in the section "columns" of --config. Or state requests in a column of the interactions, by '
            "request_column (--request-column)."
        )
    return own


def said_before(
    split: Split, spoken: Sequence[Sequence[str | None]], length: int | None = None
) -> list[tuple[Tensor, str, int]]:
    """Return (history before, text, item) of each training visit with a text, but for first visits.

    Args:
        split: Histories.
        spoken: The text of each item of each history of ``split.train``, or None.
        length: Most items of a history before; None: all.
    """
    return [
        (items[0 if length is None else max(0, place - length) : place], text, int(items[place]))
        for items, texts in zip(split.train, spoken, strict=True)
        for place, text in enumerate(texts)
        if text is not None and place
    ]


def with_said(catalogue: Catalogue, split: Split, spoken: Sequence[Sequence[str | None]]) -> Catalogue:
    """Return a catalogue with a column of what was said in training before each item was met; the same if nothing was.

    Arguments as for :func:`said_before`.
    """
    said: list[list[str]] = [[] for _ in range(len(catalogue))]
    for items, texts in zip(split.train, spoken, strict=True):
        for item, text in zip(items.tolist(), texts, strict=True):
            if text is not None:
                said[item].append(text.replace("|", " "))
    return replace(catalogue, texts={**catalogue.texts, SAID: tuple(map("|".join, said))}) if any(said) else catalogue


def check_protocol(protocol: str) -> None:
    """Raise a DataError if there is no such kind of split."""
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol: found {protocol!r}, expected one of {', '.join(PROTOCOLS)}.")


def check_room(histories: Sequence[Tensor], items: int, k: int = LIST_LENGTH) -> None:
    """Raise a DataError if a history leaves fewer than ``k`` of the catalogue's items to recommend."""
    longest = max(map(len, histories))
    if items - longest < k:
        raise DataError(
            f"a history holds {longest} of the {items} items: fewer than {k} are left to recommend. Give a larger "
            "catalogue or shorter histories."
        )
