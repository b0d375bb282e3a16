"""A user's own data, split and checked, and the requests that it states."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.atomic import read_typed
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import DATASETS, dataset_folder, load_dataset
from cramer_peft.recsys.data.interactions import Interactions
from cramer_peft.recsys.data.split import Split, Stage, TemporalSplit, leave_one_out, temporal_split

Protocol = Literal["leave-one-out", "temporal"]
PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal")
REQUEST_COLUMN = "request"
LIST_LENGTH = 10
_TEXTS = ("token", "token_seq", "str")


@dataclass(frozen=True)
class Columns:
    """Which fields of the ``.item`` file are read, as for :func:`~cramer_peft.recsys.data.datasets.load_dataset`.

    Attributes:
        title_column: Field with the title; None: found by name.
        attribute_column: Field with the attributes; None: found by name.
        attribute_separator: What separates them; None: by the field's type.
        min_attribute_items: Attributes on fewer items are dropped.
    """

    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    min_attribute_items: int = 5


@dataclass(frozen=True, eq=False)
class OwnData:
    """A data set that is ready for training and evaluation.

    Attributes:
        folder: Where its files are.
        catalogue: The items and their attributes.
        interactions: Of all users that were loaded.
        split: Of these.
        protocol: How they were split.
    """

    folder: Path
    catalogue: Catalogue
    interactions: Interactions
    split: Split
    protocol: Protocol

    def describe(self) -> str:
        """Numbers of users, items and attributes, and who is left out, in a line."""
        parts = [
            f"{len(self.interactions):,} users, {len(self.catalogue):,} items, "
            f"{len(self.catalogue.attributes)} attributes"
        ]
        if self.interactions.dropped_users:
            parts.append(f"{self.interactions.dropped_users:,} users with fewer than 3 items left out")
        if isinstance(self.split, TemporalSplit):
            counts = self.split.validation.users, self.split.test.users
            parts.append(f"{counts[0]:,} users validate, {counts[1]:,} test")
        return "; ".join(parts)

    def own_requests(self, stage: Stage) -> tuple[str | None, ...] | None:
        """What each user of a stage asked for when they met their target, as the ``.inter`` file states it.

        Args:
            stage: "validation" or "test".

        Returns:
            A text or None for each row of the stage; None if the file has no field ``request``.

        Raises:
            DataError: If the field holds no text.
        """
        stated = _stated_requests(next(self.folder.glob("*.inter")))
        if stated is None:
            return None
        targets = self.split.test_target if stage == "test" else self.split.validation_target
        users = torch.arange(len(targets))
        if isinstance(self.split, TemporalSplit):
            users = self.split.test_users if stage == "test" else self.split.validation_users
        pairs = zip(users.tolist(), targets.tolist(), strict=True)
        names = ((self.interactions.user_ids[user], self.catalogue.item_ids[item]) for user, item in pairs)
        return tuple(stated.get(pair) for pair in names)


def load_own_data(
    data: str | os.PathLike[str], protocol: Protocol = "leave-one-out", columns: Columns | None = None
) -> OwnData:
    """Read a data set by name or folder, split it, and say at once what training or evaluation would fail on.

    Args:
        data: A name in ``DATASETS``, or a folder of atomic files.
        protocol: "leave-one-out", or "temporal" for one timeline of all users.
        columns: What to read; None: what is found by name.

    Raises:
        DataError: If the data cannot be used.
        DownloadError: If a named data set cannot be fetched.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"protocol: found {protocol!r}, expected one of {', '.join(PROTOCOLS)}.")
    least = 1 if protocol == "temporal" else 3
    columns = columns or Columns()
    folder = dataset_folder(data)
    catalogue, interactions = load_dataset(
        str(data) if str(data) in DATASETS else folder, min_interactions=least, **asdict(columns)
    )
    if not catalogue.attributes:
        raise DataError(
            f"{folder}: no attribute is on {columns.min_attribute_items} or more items, but requests ask for "
            "attributes. Name another field of the .item file with --attribute-column, how its values are separated "
            "with --attribute-separator, or lower --min-attribute-items."
        )
    split = temporal_split(interactions) if protocol == "temporal" else leave_one_out(interactions)
    longest = max(len(history) for history in split.history("test"))
    if len(catalogue) - longest < LIST_LENGTH:
        raise DataError(
            f"{folder}: a history holds {longest} of the {len(catalogue)} items: fewer than {LIST_LENGTH} are left to "
            "recommend. Give a larger catalogue or shorter histories."
        )
    return OwnData(folder, catalogue, interactions, split, protocol)


def _stated_requests(path: Path) -> dict[tuple[str, str], str] | None:
    """Request by user and item, of their first interaction in time; None if the file has no such field."""
    with path.open("rb") as file:  # the header alone: a file without the field is not read twice
        if f"{REQUEST_COLUMN}:".encode() not in file.readline(1 << 20):
            return None
    frame, types = read_typed(path)
    if REQUEST_COLUMN not in types:
        return None
    if types[REQUEST_COLUMN] not in _TEXTS:
        raise DataError(
            f"{path}, line 1: field {REQUEST_COLUMN!r} has type {types[REQUEST_COLUMN]}, expected text "
            f"({', '.join(_TEXTS)})."
        )
    ordered = frame.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"])
    rows = zip(ordered["user_id"], ordered["item_id"], ordered[REQUEST_COLUMN], strict=True)
    return {(user, item): text.strip() for user, item, text in rows if text.strip()}
