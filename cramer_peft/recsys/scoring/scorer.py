"""Makes the lists of a table of rows: the same class in this process, in a Ray actor and in a Spark task."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cramer_peft.errors import ConfigError, CramerError, DataError, require
from cramer_peft.recsys.data.histories import seen_mask
from cramer_peft.recsys.devices import fastest_device
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.heard import Heard, heard_line
from cramer_peft.recsys.rows import best_lists


@dataclass(frozen=True)
class ListOptions:
    """What the lists are to be, and where the rows have what.

    Args:
        k: Length of the lists; one is shorter where fewer items are unseen.
        strength: Strength of the requests.
        batch_size: Rows that the model scores together: fewer need less memory, more are faster on a GPU.
        user: The column that tells whose row it is. It is carried through and never looked at.
        history: The column of item ids, a list for each row, oldest first.
        request: The column of requests; None: there is none.
        candidates: Ids of the items that may be recommended; None: all.
        exclude: Ids of items that may not.
        refuse_unknown: Make no list for a history with an unknown item, in place of leaving the item out.

    Raises:
        ConfigError: If ``k`` or ``batch_size`` is below 1, or two columns have one name.
    """

    k: int = 10
    strength: float = 1.0
    batch_size: int = 256
    user: str = "user"
    history: str = "history"
    request: str | None = "request"
    candidates: Collection[str] | None = None
    exclude: Collection[str] = ()
    refuse_unknown: bool = False

    def __post_init__(self) -> None:
        for name in ("k", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: found {value!r}, expected a whole number, 1 or more.")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(
                f"columns: found {self.columns}, expected a column for each of user, history and request."
            )

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read."""
        return [self.user, self.history] + ([] if self.request is None else [self.request])

    def check_schema(self, schema: Any, place: str) -> None:
        """Raise a DataError if a table has no such columns, or columns of another type; ``place`` names the table."""
        types = require("pyarrow", extra="tables").types
        if missing := [name for name in self.columns if name not in schema.names]:
            raise DataError(
                f"{place}: found the columns {', '.join(schema.names)}, expected also {', '.join(missing)}. Name the "
                "columns by user=, history= and request=; request=None for rows without requests."
            )
        kind = schema.field(self.history).type
        if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
            raise DataError(f"{place}: column {self.history!r}: found {kind}, expected a list of item ids in each row.")
        kind = None if self.request is None else schema.field(self.request).type
        kind = kind.value_type if kind is not None and types.is_dictionary(kind) else kind
        if kind is not None and not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
            raise DataError(f"{place}: column {self.request!r}: found {kind}, expected texts.")


class Scored(NamedTuple):
    """The lists of a table, and its bad rows."""

    lists: Any  # a table of user, rank (from 1), item, score, heard
    bad: Any  # a table of the rows without a list, as they came, and the reason
    unknown: int = 0  # items left out of the histories of the others, because the catalogue does not have them


class _Known(NamedTuple):
    """A row that can be scored."""

    row: int
    history: list[int]
    unknown: int
    heard: Heard | None
    vector: Tensor | None


class ListScorer:
    """Makes lists for tables of rows. The recommender is loaded once; what was read of a request's text is kept.

    Args:
        recommender: Its folder, which every machine can read.
        options: What the lists are to be.
        gpu: Use the accelerator that this process sees, if there is one.
        threads: Of torch, for this whole process; None: as they are. Set it where several scorers share a machine.

    Raises:
        DataError: If the folder holds no recommender, or an id of ``candidates`` or ``exclude`` is unknown.
        MissingExtraError: If pyarrow is not installed.
    """

    def __init__(
        self,
        recommender: str | os.PathLike[str],
        options: ListOptions | None = None,
        gpu: bool = False,
        threads: int | None = None,
    ) -> None:
        self._arrow = require("pyarrow", extra="tables")
        self.options = options or ListOptions()
        if threads is not None:
            torch.set_num_threads(threads)
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._recommender = RequestRecommender.load(recommender)
        if gpu:
            self._recommender.masks.to(fastest_device())
        ids = self._recommender.catalogue.item_ids
        self._numbers, self._ids = self._recommender.catalogue.positions, self._arrow.array(ids)
        candidates, exclude = self.options.candidates, self.options.exclude
        self._closed = torch.full((len(ids),), candidates is not None)  # items that no list may hold
        for name, named, closed in (("candidates", candidates, False), ("exclude", exclude, True)):
            self._closed[self._indices(name, () if named is None else named)] = closed
        self._allowed = set((~self._closed).nonzero().flatten().tolist())

    def __call__(self, table: Any) -> Scored:
        """Return the lists of a ``pyarrow.Table``, in its order, and the rows that have none, with the reason.

        A row's list does not depend on others, but for rounding (1e-5 of a score): torch rounds another number of rows
        otherwise.

        Raises:
            DataError: If a column is missing or of another type.
        """
        options = self.options
        options.check_schema(table.schema, "the table")
        histories = table[options.history].to_pylist()
        requests = [None] * len(table) if options.request is None else table[options.request].to_pylist()
        reasons: dict[int, str] = {}
        rows: list[int] = []
        items: list[list[int]] = []
        scores: list[list[float]] = []
        heard: list[str | None] = []
        unknown = 0
        for start in range(0, len(table), options.batch_size):
            stop = min(start + options.batch_size, len(table))
            known = list(self._known(range(start, stop), histories, requests, reasons))
            for one, (own, values) in zip(known, self._lists(known, reasons), strict=True):
                if own:
                    rows.append(one.row)
                    items.append(own)
                    scores.append(values)
                    heard.append(None if one.heard is None else heard_line(one.heard))
                    unknown += one.unknown
        return Scored(self._table(table[options.user], rows, items, scores, heard), self._bad(table, reasons), unknown)

    def _known(
        self, rows: Iterable[int], histories: Sequence[Any], requests: Sequence[Any], reasons: dict[int, str]
    ) -> Iterable[_Known]:
        """Yield the rows that can be scored; the others go to ``reasons``."""
        for row in rows:
            try:
                history = self._indices("history", histories[row], leave_out=not self.options.refuse_unknown)
                unknown = len(histories[row]) - len(history)
                if not history:
                    if unknown:
                        self._indices("history", histories[row])  # which names the first
                    raise DataError("history: found no item, expected one or more.")
                if len(history) >= len(self._allowed) and self._allowed.issubset(history):
                    raise DataError("history: found every item that may be recommended, so none is left.")
                heard, vector = self._recommender.listener.vector(requests[row], history)
            except CramerError as error:
                reasons[row] = str(error.args[0])
            else:
                yield _Known(row, history, unknown, heard, vector)

    def _lists(self, known: list[_Known], reasons: dict[int, str]) -> list[tuple[list[int], list[float]]]:
        """Return the items and scores of each row, none for a row whose scores cannot be ranked."""
        if not known:
            return []
        histories = [torch.tensor(one.history) for one in known]
        try:
            vectors = [one.vector for one in known]
            scores = self._recommender.scores(histories, vectors, self.options.strength).float()
        except CramerError as error:
            if len(known) == 1:
                reasons[known[0].row] = str(error.args[0])
                return [([], [])]
            half = len(known) // 2  # look for the row
            return [*self._lists(known[:half], reasons), *self._lists(known[half:], reasons)]
        barred = seen_mask(histories, len(self._numbers)) | self._closed
        return list(zip(*best_lists(scores, barred, self.options.k), strict=True))

    def _indices(self, name: str, ids: Any, leave_out: bool = False) -> list[int]:
        if isinstance(ids, str | bytes) or not isinstance(ids, Collection):
            raise DataError(f"{name}: found {reprlib.repr(ids)}, expected a list of item ids.")
        found = []
        for place, item_id in enumerate(ids):
            plain = isinstance(item_id, str | int) and not isinstance(item_id, bool)
            number = self._numbers.get(str(item_id)) if plain else None
            if number is None and plain and leave_out:
                continue
            if number is None:
                raise DataError(f"{name}[{place}]: no item of the catalogue has the id {reprlib.repr(item_id)}.")
            found.append(number)
        return found

    def _table(self, users: Any, rows: list[int], items: list[Any], scores: list[Any], heard: list[Any]) -> Any:
        arrow = self._arrow
        lengths = [len(own) for own in items]
        places = [place for place, length in enumerate(lengths) for _ in range(length)]
        columns = {
            "user": users.take(arrow.array([rows[place] for place in places], arrow.int64())),
            "rank": arrow.array([rank for length in lengths for rank in range(1, length + 1)], arrow.int32()),
            "item": self._ids.take(arrow.array([item for own in items for item in own], arrow.int64())),
            "score": arrow.array([value for own in scores for value in own], arrow.float32()),
            "heard": arrow.array(heard, arrow.string()).take(arrow.array(places, arrow.int64())),
        }
        return arrow.table(columns)

    def _bad(self, table: Any, reasons: dict[int, str]) -> Any:
        rows = sorted(reasons)
        bad = table.select(self.options.columns).take(self._arrow.array(rows, self._arrow.int64()))
        return bad.append_column("reason", self._arrow.array([reasons[row] for row in rows], self._arrow.string()))
