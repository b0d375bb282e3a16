"""Users' sequences of items, read from a table of interactions and a table of items."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.data.atomic import TEXT_TYPES, read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.columns import Columns, found_columns
from cramer_peft.recsys.data.histories import whole_number
from cramer_peft.recsys.data.items import Items, read_items
from cramer_peft.recsys.data.table import Table, counted, listed, together
from cramer_peft.recsys.data.times import parse_times, shown_time

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]


_UNKNOWN = 0.1  # most lines, as a share, that may name an item without a row
_AT_ONCE = 100  # visits of one user at one time from which on they look wrong


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """The items that each user interacted with, oldest first."""

    user_ids: tuple[str, ...]  # in order of their first line in the file
    sequences: tuple[Tensor, ...]  # per user indices into the catalogue, (length,) int64
    dropped_users: int = 0  # for too few interactions
    dropped_repeats: int = 0  # interactions with an item that the user had met before
    times: tuple[Tensor, ...] = ()  # per user (length,) int64 or float64, never decreasing; empty if unknown
    source: str = ""  # name of the file, for messages
    dropped_ratings: int = 0  # lines rated below ``min_rating``
    dropped_visits: int = 0  # lines with an item that is not among the items

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

    def __repr__(self) -> str:
        return f"Interactions({counted(len(self), 'user')}, {counted(sum(map(len, self.sequences)), 'visit')})"

    @property
    def tied_users(self) -> int:
        """Number of users with items of equal time, whose order is that of the file's lines."""
        return sum(bool((times[1:] == times[:-1]).any()) for times in self.times)


def read_folder(folder: Path) -> tuple[Table, Table]:
    """Return the interactions and the items of a folder with one ``.inter`` and one ``.item`` file."""
    return read_atomic(_the_one_file(folder, ".inter")), read_atomic(_the_one_file(folder, ".item"))


def _the_one_file(folder: Path, suffix: str) -> Path:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = [name for name in names if name.endswith(suffix)]
    if len(found) != 1:
        names_listed = listed(found if found else names, limit=10) or "no files at all"
        raise DataError(
            f"{folder}: expected exactly one *{suffix} file, found {len(found)} ({names_listed}). "
            "Give a folder with one."
        )
    return folder / found[0]


def check_numbers(columns: Columns, min_interactions: int) -> None:
    """Raise a DataError if one of the least numbers is impossible."""
    for name, value in (("min_interactions", min_interactions), ("min_attribute_items", columns.min_attribute_items)):
        if whole_number(name, value) < 1:
            raise DataError(f"{name}: found {value}, expected 1 or more.")
    least: object = columns.min_rating
    number = isinstance(least, int | float) and not isinstance(least, bool)
    if least is not None and not (number and math.isfinite(least)):  # type: ignore[arg-type]
        raise DataError(f"min_rating: found {least!r}, expected a finite number, or None to count every line.")


@dataclass(frozen=True, eq=False)
class Reading:
    """A data set as it was read.

    Attributes:
        items: The items.
        interactions: The users' sequences.
        columns: What to read, with the columns that serve as user, item, time, title and attributes.
        lines: Lines that say what was read, and what of it looks wrong.
        table: The table of interactions.
        request_column: Its column of requests, if there is one.
        first: ``user_id`` and ``item_id`` of each user's first visit to each item; the index is the row's number.
    """

    items: Items
    interactions: Interactions
    columns: Columns
    lines: tuple[str, ...]
    table: Table
    request_column: str | None
    first: pd.DataFrame

    def requests(self) -> dict[tuple[str, str], str] | None:
        """Return the request of each user's first visit to an item; None if there is no column of requests."""
        if self.request_column is None:
            return None
        self.table.check_kind(self.request_column, *TEXT_TYPES)
        texts = self.table[self.request_column].iloc[self.first.index]
        rows = zip(self.first["user_id"], self.first["item_id"], texts, strict=True)
        return {(user, item): text.strip() for user, item, text in rows if text.strip()}


def read_pair(interactions: Table, items: Table | None, columns: Columns, min_interactions: int) -> Reading:
    """Read two tables, or the interactions alone; arguments as for ``load_dataset``.

    Raises:
        DataError: If a column is missing, or a value in one that is used cannot be.
    """
    needed, optional, why = ["user_column", "item_column", "time_column"], ["request_column"], ""
    (optional if columns.min_rating is None else needed).append("rating_column")
    if columns.min_rating is not None:
        why = f" min_rating={columns.min_rating:g} needs ratings."
    found: dict[str, Any] = found_columns(interactions, columns, needed, optional, why)
    kept = {field: found[field] for field in needed}  # a later evaluation needs no other column to be there
    columns, stored = replace(columns, **found), replace(columns, **kept)
    user, item, time = (str(found[field]) for field in ("user_column", "item_column", "time_column"))
    for name, kinds in ((item, ("token",)), (user, ("token",)), (time, ("float", "token", "str"))):
        interactions.check_kind(name, *kinds)
    item_ids, user_ids, times, given = together(
        lambda: interactions.ids(item),
        lambda: interactions.ids(user),
        lambda: parse_times(interactions, time),
        lambda: None if items is None else read_items(items, columns, item),
    )
    source = _items_of(interactions, columns, item, item_ids) if items is None else items
    read: Items = given or read_items(source, columns, item)
    stored = replace(stored, title_column=read.title_column, attribute_column=read.attribute_column)
    stored = replace(stored, attribute_separator=read.separator)
    pd = require("pandas", extra="demo")
    frame = pd.DataFrame({"user_id": user_ids, "item_id": item_ids, "timestamp": times})
    liked = frame if columns.min_rating is None else frame[_liked(interactions, columns)]
    known, lost = _with_items(interactions, liked, item, source, read.catalogue)
    sequences, first = _sequences(interactions, known, columns, min_interactions)
    sequences = replace(sequences, dropped_ratings=len(frame) - len(liked), dropped_visits=len(liked) - len(known))
    first_line = _columns_line(interactions, columns, frame["timestamp"], items is not None)
    lines = [first_line, _items_line(source, read), *lost]
    lines += [*read.describe(), *_doubts(known)]
    return Reading(read, sequences, stored, tuple(lines), interactions, columns.request_column, first)


def _items_of(table: Table, columns: Columns, item: str, ids: pd.Series) -> Table:
    """Return the items that interactions tell of: their first rows, and the columns that are the same in all rows."""
    why = " There is no table of items (--items), so their columns are those of the interactions."
    named = found_columns(table, columns, ("attribute_column",), ("title_column",), why).values()
    used = {columns.user_column, columns.time_column, columns.rating_column, columns.request_column}
    names = [
        name for name in table.names if name not in used and (name in (item, *named) or _is_same(table[name], ids))
    ]
    return table.taken(ids.drop_duplicates().index.tolist(), names)


def _is_same(column: pd.Series, ids: pd.Series) -> bool:
    """Return True if a column has one value for each item."""
    return bool((column.groupby(ids).nunique() <= 1).all())


def _liked(table: Table, columns: Columns) -> pd.Series:
    """Return which rows are rated ``min_rating`` or more."""
    name, least = str(columns.rating_column), columns.min_rating
    table.check_kind(name, "float")
    ratings = table.numbers(name)
    message = f"column {{name!r}} is blank, expected a number: min_rating={least:g} needs one."
    table.refuse(ratings[ratings.isna()], message, name=name)
    if len(ratings) and not bool((ratings >= least).any()):
        raise DataError(
            f"{table.source}: column {name!r} is from {ratings.min():g} to {ratings.max():g}, expected values of "
            f"min_rating={least:g} or more. Lower min_rating."
        )
    return ratings >= least


def _with_items(
    table: Table, frame: pd.DataFrame, item: str, items: Table, catalogue: Catalogue
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows whose items are known, with their indices in ``item``, and a line on the others, if there are."""
    pd = require("pandas", extra="demo")
    index = pd.Index(catalogue.item_ids, dtype=object).get_indexer(frame["item_id"])
    unknown = frame["item_id"][index < 0]
    if len(unknown) > _UNKNOWN * len(frame):
        message = (
            "{values} of {name} not in {file}: {ids}, in {rows} of {all} {word}s; there are {some}. Add these items "
            "there, or remove their interactions."
        )
        named = {"name": item, "file": items.source, "all": str(len(frame)), "some": listed(catalogue.item_ids, 3)}
        table.refuse(unknown, message, **named)
    kept = frame[index >= 0].assign(item=index[index >= 0])
    ids = list(dict.fromkeys(unknown))
    what = f"{counted(len(unknown), 'visit')} of {counted(len(ids), 'item')}"
    return kept, [f"warning: {what} without a row among the items left out: {listed(ids)}"] if ids else []


def _sequences(
    table: Table, frame: pd.DataFrame, columns: Columns, min_interactions: int
) -> tuple[Interactions, pd.DataFrame]:
    """Return the users' sequences, and each user's first row with each item."""
    pd = require("pandas", extra="demo")
    codes, user_ids = pd.factorize(frame["user_id"])
    # a stable order, so that ties keep the order of the lines
    ordered = frame.assign(user=codes).sort_values(["user", "timestamp"], kind="stable")
    first = ordered.drop_duplicates(["user", "item"])
    lengths = first["user"].value_counts(sort=False).sort_index()
    kept = lengths[lengths >= min_interactions]
    if kept.empty:
        raise DataError(
            f"{table.source}: none of {len(user_ids)} users has {min_interactions} or more different items"
            + ("" if columns.min_rating is None else f" rated {columns.min_rating:g} or more")
            + ". Lower min_interactions or min_rating, or give more data."
        )
    rows = first[first["user"].isin(kept.index)]
    items = torch.tensor(rows["item"].to_numpy(), dtype=torch.long)
    moments = torch.tensor(rows["timestamp"].to_numpy())
    sequences = Interactions(
        user_ids=tuple(user_ids[user] for user in kept.index),
        sequences=tuple(items.split(kept.tolist())),
        dropped_users=len(user_ids) - len(kept),
        dropped_repeats=len(frame) - len(first),
        times=tuple(moments.split(kept.tolist())),
        source=Path(table.source).name,
    )
    return sequences, first


def _columns_line(table: Table, columns: Columns, times: pd.Series, alone: bool) -> str:
    """Return a line on what serves as what; ``alone``: no other column is looked at."""
    serving = {role: getattr(columns, f"{role}_column") for role in ("user", "item", "time", "rating", "request")}
    parts = [f"{role} {name!r}" if name else f"no {role}" for role, name in serving.items()]
    span = f" ({shown_time(times.min())} to {shown_time(times.max())})" if len(times) else ""
    parts[2] += span
    if columns.rating_column and columns.min_rating is None:
        parts[3] += " (every interaction counts, whatever its rating)"
    unused = [name for name in table.names if name not in serving.values()] if alone else []
    return f"{_read_line(table)}: {', '.join(parts)}" + (f"; not used: {listed(unused, 20)}" if unused else "")


def _items_line(table: Table, items: Items) -> str:
    columns = f"item {items.id_column!r}, title {items.title_column!r}, attributes {items.attribute_column!r}"
    return f"{_read_line(table)}: {columns}"


def _read_line(table: Table) -> str:
    return ", ".join(filter(None, [Path(table.source).name, table.notes, f"{len(table):,} rows"]))


def _doubts(frame: pd.DataFrame) -> list[str]:
    """Return a line on the user with most visits at one time, if they are too many for a person."""
    counts: pd.Series = frame.groupby(["user_id", "timestamp"], sort=False).size()
    if not len(counts) or counts.max() < _AT_ONCE:
        return []
    user, moment = counts.idxmax()
    return [f"warning: user {user!r} has {counts.max():,} visits at one time, {shown_time(moment)}: hardly a person's"]
