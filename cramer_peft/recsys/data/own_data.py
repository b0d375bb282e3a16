"""A user's own data set: loaded, split and checked for use, with the requests that its file states."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.atomic import TEXT_TYPES
from cramer_peft.recsys.data.catalogue import SAID, Catalogue
from cramer_peft.recsys.data.datasets import dataset_folder
from cramer_peft.recsys.data.interactions import Interactions, read_folder, read_interactions
from cramer_peft.recsys.data.splits import Split, Stage, TemporalSplit, leave_one_out, temporal_split

Protocol = Literal["leave-one-out", "temporal"]
PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal")
REQUEST_COLUMN = "request"
LIST_LENGTH = 10  # of the lists that are evaluated


@dataclass(frozen=True)
class Columns:
    """What to read of the files, as for :func:`~cramer_peft.recsys.data.datasets.load_dataset`."""

    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    min_attribute_items: int = 5
    min_rating: float | None = None


@dataclass(frozen=True, eq=False)
class OwnData:
    """A data set that is ready for training and evaluation: the folder of its files, and what was read and split."""

    folder: Path
    catalogue: Catalogue
    interactions: Interactions
    split: Split
    protocol: Protocol
    min_rating: float | None = None
    reading: tuple[str, ...] = ()  # lines that say how the items were read
    stated: Mapping[tuple[str, str], str] | None = None  # (user, item) → request; None: there is no field of requests

    def describe(self) -> str:
        """Return lines on what was read, how, and what was left out; the first says what ratings and times do."""
        parts = [
            f"{len(self.interactions):,} users, {len(self.catalogue):,} items, "
            f"{len(self.catalogue.attributes)} attributes"
        ]
        if self.interactions.dropped_users:
            parts.append(f"{self.interactions.dropped_users:,} users with fewer than 3 items left out")
        if self.min_rating is None:
            parts.append("every interaction counts, whatever its rating")
        else:
            parts.append(f"{self.interactions.dropped_ratings:,} interactions rated below {self.min_rating:g} left out")
        if self.interactions.tied_users:
            tied = self.interactions.tied_users
            parts.append(f"{tied:,} users have items of equal time, which the order of the file's lines sorts")
        if isinstance(self.split, TemporalSplit):
            counts = self.split.validation.users, self.split.test.users
            parts.append(f"{counts[0]:,} users validate, {counts[1]:,} test")
        return "\n".join(["; ".join(parts), *self.reading])

    @property
    def states_requests(self) -> bool:
        """True if the file of interactions has a field ``request``."""
        return self.stated is not None

    def own_requests(self, stage: Stage) -> tuple[str | None, ...] | None:
        """Return the request stated for each target of a stage, or None; None if there is no field ``request``."""
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
        rows = zip(self.split.train, self.training_requests() if self.stated else (), strict=False)
        return [
            (items[:place], text, int(items[place]))
            for items, texts in rows
            for place, text in enumerate(texts)
            if text is not None and place
        ]

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
    data: str | os.PathLike[str],
    protocol: Protocol = "leave-one-out",
    columns: Columns | None = None,
    attributes: bool | None = None,
) -> OwnData:
    """Read a data set by name or folder, split it, and check that it can be trained on and evaluated.

    ``attributes`` says whether requests need some; None: they do if the data states no request.
    """
    check_protocol(protocol)
    least = 1 if protocol == "temporal" else 3
    columns = columns or Columns()
    folder = dataset_folder(data)
    items, interactions = read_folder(folder, min_interactions=least, **asdict(columns))
    split = temporal_split(interactions) if protocol == "temporal" else leave_one_out(interactions)
    check_room(split.history("test"), len(items.catalogue))
    visits = torch.bincount(torch.cat(split.train), minlength=len(items.catalogue))  # of training alone
    catalogue = items.catalogue.with_popularity(visits)
    reading = tuple(items.describe())
    stated = _stated_requests(next(folder.glob("*.inter")), columns.min_rating)
    own = _with_said(OwnData(folder, catalogue, interactions, split, protocol, columns.min_rating, reading, stated))
    if not catalogue.attributes and (attributes or (attributes is None and not own.said())):
        raise DataError(
            f"{folder}: no attribute is on {columns.min_attribute_items} or more items, but requests ask for "
            "attributes. Name another field of the .item file by attribute_column and its separator by "
            'attribute_separator, or lower min_attribute_items: in the section "columns" of --config. Or state '
            f"requests in a field {REQUEST_COLUMN!r} of the .inter file."
        )
    return own


def _with_said(data: OwnData) -> OwnData:
    """Return the data with a column of what was said in training before each item was met."""
    texts: list[list[str]] = [[] for _ in range(len(data.catalogue))]
    for items, said in zip(data.split.train, data.training_requests() if data.states_requests else (), strict=False):
        for item, text in zip(items.tolist(), said, strict=True):
            if text is not None:
                texts[item].append(text.replace("|", " "))
    if not any(texts):
        return data
    columns = {**data.catalogue.texts, SAID: tuple(map("|".join, texts))}
    return replace(data, catalogue=replace(data.catalogue, texts=columns))


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


def _stated_requests(path: Path, min_rating: float | None) -> dict[tuple[str, str], str] | None:
    """Return the request of each user and item's first interaction; None if the file has no such field."""
    with path.open("rb") as file:  # look at the header first, so that a file without the field is not read twice
        if f"{REQUEST_COLUMN}:".encode() not in file.readline(1 << 20):
            return None
    frame, types, _ = read_interactions(path, min_rating)
    if REQUEST_COLUMN not in types:
        return None
    if types[REQUEST_COLUMN] not in TEXT_TYPES:
        raise DataError(
            f"{path}, line 1: field {REQUEST_COLUMN!r} has type {types[REQUEST_COLUMN]}, expected text "
            f"({', '.join(TEXT_TYPES)})."
        )
    ordered = frame.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"])
    rows = zip(ordered["user_id"], ordered["item_id"], ordered[REQUEST_COLUMN], strict=True)
    return {(user, item): text.strip() for user, item, text in rows if text.strip()}
