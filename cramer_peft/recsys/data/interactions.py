"""Users' sequences of items, read from a pair of atomic files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.data.atomic import (
    check_fields,
    check_types,
    listed,
    parse_floats,
    read_atomic,
    refuse,
    refuse_blank,
)
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import whole_number
from cramer_peft.recsys.data.items import Items, read_items
from cramer_peft.recsys.data.times import has_dates, parse_times
from cramer_peft.recsys.reading import as_path

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]


@dataclass(frozen=True, eq=False)
class Interactions:
    """The items that each user interacted with, oldest first."""

    user_ids: tuple[str, ...]  # in order of their first line in the file
    sequences: tuple[Tensor, ...]  # per user indices into the catalogue, (length,) int64
    dropped_users: int = 0  # for too few interactions
    dropped_repeats: int = 0  # interactions with an item that the user had met before
    times: tuple[Tensor, ...] = ()  # per user (length,) int64 or float64, never decreasing; empty if unknown
    source: str = ""  # name of the file, for messages
    dropped_ratings: int = 0  # lines rated below ``min_rating``

    def __post_init__(self) -> None:
        if len(self.user_ids) != len(self.sequences):
            raise DataError(
                f"sequences: found {len(self.sequences)}, expected one for each of the {len(self.user_ids)} user_ids."
            )
        if self.times and [len(times) for times in self.times] != [len(items) for items in self.sequences]:
            raise DataError("times: expected one timestamp for each item of each of the sequences.")

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.user_ids)

    @property
    def tied_users(self) -> int:
        """Number of users with items of equal time, whose order is that of the file's lines."""
        return sum(bool((times[1:] == times[:-1]).any()) for times in self.times)


def load_interactions(
    folder: str | os.PathLike[str],
    title_column: str | None = None,
    attribute_column: str | None = None,
    attribute_separator: str | None = None,
    min_interactions: int = 3,
    min_attribute_items: int = 5,
    min_rating: float | None = None,
) -> tuple[Catalogue, Interactions]:
    """Read RecBole atomic files: a folder with one ``.inter`` and one ``.item`` file.

    The catalogue holds every item of the ``.item`` file in its order; a blank title becomes the id. Attributes
    "unknown", "(no genres listed)" and those on fewer than ``min_attribute_items`` items are left out. The other fields
    of the ``.item`` file become its ``texts`` and ``numbers``.

    Interactions are sorted by timestamp; **ties keep the order of the file's lines**, which often decides the last item
    (for 44% of the users of MovieLens-100k): ``Interactions.tied_users`` counts the users. Of several with one item
    only the first is kept, since a user ranks an item once. Fields that are not used may hold anything. The rest is as
    for :func:`~cramer_peft.recsys.data.datasets.load_dataset`.
    """
    columns = title_column, attribute_column, attribute_separator
    items, interactions = read_folder(as_path(folder), *columns, min_interactions, min_attribute_items, min_rating)
    return items.catalogue, interactions


def read_folder(
    folder: Path,
    title_column: str | None,
    attribute_column: str | None,
    attribute_separator: str | None,
    min_interactions: int,
    min_attribute_items: int,
    min_rating: float | None,
) -> tuple[Items, Interactions]:
    """Do as :func:`load_interactions`, and also say how the items were read."""
    for name, value in (("min_interactions", min_interactions), ("min_attribute_items", min_attribute_items)):
        if whole_number(name, value) < 1:
            raise DataError(f"{name}: found {value}, expected 1 or more.")
    _check_rating(min_rating)
    inter_path, item_path = (_the_one_file(folder, suffix) for suffix in (".inter", ".item"))
    items = read_items(item_path, title_column, attribute_column, attribute_separator, min_attribute_items)
    return items, _load_sequences(inter_path, item_path.name, items.catalogue, min_interactions, min_rating)


def _the_one_file(folder: Path, suffix: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder. Expected one with an .inter and an .item file.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = [name for name in names if name.endswith(suffix)]
    if len(found) != 1:
        names_listed = listed(found if found else names, limit=10) or "no files at all"
        raise DataError(
            f"{folder}: expected exactly one *{suffix} file, found {len(found)} ({names_listed}). "
            "Give a folder with one."
        )
    return folder / found[0]


def _check_rating(min_rating: object) -> None:
    number = isinstance(min_rating, int | float) and not isinstance(min_rating, bool)
    if min_rating is not None and not (number and math.isfinite(min_rating)):  # type: ignore[arg-type]
        raise DataError(f"min_rating: found {min_rating!r}, expected a finite number, or None to count every line.")


def read_interactions(path: Path, min_rating: float | None = None) -> tuple[pd.DataFrame, dict[str, str], int]:
    """Return the lines of an ``.inter`` file that count, the types of its fields, and how many lines are rated too low.

    ``timestamp`` is as :func:`~cramer_peft.recsys.data.times.parse_times` returns it; other fields are text.
    """
    frame, types = read_atomic(path, as_text=True)
    expected = {"user_id": "token", "item_id": "token", "timestamp": "float"}
    check_fields(path, types, dict.fromkeys(expected))
    if types["timestamp"] in ("token", "str") and has_dates(frame["timestamp"]):
        expected["timestamp"] = types["timestamp"]
    check_types(path, types, expected)
    refuse_blank(path, frame["user_id"])
    frame["timestamp"] = parse_times(path, frame["timestamp"])
    lines = len(frame)
    if min_rating is not None:
        frame = _rated(path, frame, types, min_rating)
    return frame, types, lines - len(frame)


def _rated(path: Path, frame: pd.DataFrame, types: dict[str, str], min_rating: float) -> pd.DataFrame:
    if "rating" not in types:
        raise DataError(
            f"{path}: fields missing: rating; fields there: {', '.join(types)}. min_rating={min_rating:g} needs "
            "rating:float: add it, or leave min_rating out."
        )
    check_types(path, types, {"rating": "float"})
    ratings = parse_floats(path, "rating", frame["rating"])
    message = f"field 'rating' is blank, expected a number: min_rating={min_rating:g} needs one."
    refuse(path, ratings[ratings.isna()], message)
    if len(frame) and not bool((ratings >= min_rating).any()):
        raise DataError(
            f"{path}: field 'rating' is from {ratings.min():g} to {ratings.max():g}, expected values of "
            f"min_rating={min_rating:g} or more. Lower min_rating."
        )
    return frame[ratings >= min_rating]


def _load_sequences(
    path: Path, item_file: str, catalogue: Catalogue, min_interactions: int, min_rating: float | None
) -> Interactions:
    pd = require("pandas", extra="demo")
    frame, _, dropped_ratings = read_interactions(path, min_rating)
    frame["item"] = pd.Index(catalogue.item_ids, dtype=object).get_indexer(frame["item_id"])
    message = "{n} values of item_id are not in {file}: {ids}. Add these items there or remove their interactions."
    refuse(path, frame["item_id"][frame["item"] < 0], message, file=item_file)
    frame["user"], user_ids = pd.factorize(frame["user_id"])
    # a stable order, so that ties keep the order of the lines
    first = frame.sort_values(["user", "timestamp"], kind="stable").drop_duplicates(["user", "item"])
    lengths = first["user"].value_counts(sort=False).sort_index()
    kept = lengths[lengths >= min_interactions]
    if kept.empty:
        raise DataError(
            f"{path}: none of {len(user_ids)} users has {min_interactions} or more different items"
            + ("" if min_rating is None else f" rated {min_rating:g} or more")
            + ". Lower min_interactions or min_rating, or give more data."
        )
    rows = first[first["user"].isin(kept.index)]
    items = torch.tensor(rows["item"].to_numpy(), dtype=torch.long)
    moments = torch.tensor(rows["timestamp"].to_numpy())
    return Interactions(
        user_ids=tuple(user_ids[user] for user in kept.index),
        sequences=tuple(items.split(kept.tolist())),
        dropped_users=len(user_ids) - len(kept),
        dropped_repeats=len(frame) - len(first),
        times=tuple(moments.split(kept.tolist())),
        source=path.name,
        dropped_ratings=dropped_ratings,
    )
