"""The rows that lists are made for: histories, requests and what may be in each list, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from cramer_peft.errors import CramerError, DataError, RequestError
from cramer_peft.recsys.data.histories import as_history, seen_mask
from cramer_peft.recsys.evaluation.metrics import top_items


@dataclass(frozen=True)
class Rows:
    """Rows to make lists for.

    Attributes:
        histories: Item numbers, (n,) int64 each, oldest first.
        requests: A text, a vector (request_dim,) or None for each row.
        before: Earlier requests, for each row, one list for all, or none.
        candidates: Items that may be recommended, (n,) int64 each, likewise; none: every item.
        exclude: Items that may not, likewise.
        first: The number of the first row, for errors; None: errors name no row.
    """

    histories: list[Tensor]
    requests: list[Any]
    before: list[Sequence[str]] = field(default_factory=list)
    candidates: list[Tensor] = field(default_factory=list)
    exclude: list[Tensor] = field(default_factory=list)
    first: int | None = None

    @classmethod
    def of(
        cls, history: Any, request: Any, items: int, before: Any = (), candidates: Any = None, exclude: Any = ()
    ) -> Rows:
        """Return checked rows.

        Args:
            history: Item numbers of one row, or a list of these.
            request: One for all rows, or a list with one for each.
            items: Number of items in the catalogue.
            before: Earlier requests, one list for all rows or one for each.
            candidates: Item numbers for all rows, or a collection for each row; None: every item.
            exclude: Likewise, for what is never recommended.

        Raises:
            DataError: If an item is unknown, or there are not as many entries as rows; it names the row.
            RequestError: If there are not as many requests as rows.
        """
        many = are_many(history, request)
        histories = list(history) if many else [history]
        count = len(histories)
        found = []
        for row, own in enumerate(histories):
            with _naming(f"histories[{row}]" if many else None):
                found.append(as_history(own, items))
            if not len(found[-1]):
                raise DataError(f"histories[{row}] is empty, expected at least one item. Leave out such users.")
        return cls(
            found,
            _requests(request, count),
            _for_rows("before", before, count),
            _item_sets("candidates", candidates, count, items),
            _item_sets("exclude", exclude, count, items),
            0 if many else None,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.histories)

    def pieces(self, size: int) -> Iterator[Rows]:
        """Yield the rows, ``size`` at a time."""
        for start in range(0, len(self), size):
            lists = ("histories", "requests", "before", "candidates", "exclude")
            own = {name: _cut(getattr(self, name), slice(start, start + size), len(self)) for name in lists}
            yield replace(self, **own, first=None if self.first is None else self.first + start)

    def earlier(self, row: int) -> Sequence[str]:
        """Return the earlier requests of a row."""
        return self.before[row if len(self.before) == len(self) else 0] if self.before else ()

    def naming(self, name: str, row: int) -> AbstractContextManager[None]:
        """Return a context that puts the place in front of the message of this library's errors."""
        return _naming(None if self.first is None else f"{name}[{self.first + row}]")

    def barred(self, items: int, k: int) -> Tensor:
        """Return what may not be recommended in each row, its own history above all, (rows, items) bool.

        Raises:
            DataError: If ``k`` is below 1, or nothing is left in a row.
        """
        barred = seen_mask(self.histories, items)
        if self.candidates:
            barred |= ~seen_mask(self.candidates, items)
        if self.exclude:
            barred |= seen_mask(self.exclude, items)
        room = (~barred).sum(1).tolist()
        for row, left in enumerate(room):
            if k < 1 or left < 1:
                what = "unseen items" + (" that may be recommended" if self.candidates or self.exclude else "")
                with self.naming("histories", row):
                    raise DataError(f"found k={k} and {left} {what}, expected 1 or more of both.")
        return barred


def are_many(history: Any, request: Any) -> bool:
    """Return True if a history is a list of several, as in ``[[3, 7], [11]]``; of none, if the requests are, too."""
    if not isinstance(history, list | tuple):
        return False
    return _is_collection(history[0]) if len(history) else isinstance(request, list | tuple) and not request


def best_lists(scores: Tensor, barred: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Return the k best items of each row and their scores, fewer where fewer may be recommended, best first.

    Args:
        scores: (rows, items), of the CPU.
        barred: What may not be recommended, (rows, items) bool.
        k: Length of the lists.
    """
    room = (~barred).sum(1).clamp(max=k)
    items: list[list[int]] = [[] for _ in scores]
    values: list[list[float]] = [[] for _ in scores]
    for length in room.unique().tolist():
        rows = (room == length).nonzero().flatten()
        own, left = (scores, barred) if len(rows) == len(scores) else (scores[rows], barred[rows])
        top = top_items(own, left, length)
        best = own.gather(1, top).tolist()
        for row, numbers, given in zip(rows.tolist(), top.tolist(), best, strict=True):
            items[row], values[row] = numbers, given
    return items, values


@contextmanager
def _naming(place: str | None) -> Iterator[None]:
    try:
        yield
    except CramerError as error:
        if place is None:
            raise
        raise type(error)(f"{place}: {error}") from error


def _cut(values: list[Any], part: slice, rows: int) -> list[Any]:
    return values[part] if len(values) == rows else values


def _is_collection(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0 or (isinstance(value, Sequence | Set) and not isinstance(value, str | bytes))


def _requests(requests: Any, count: int) -> list[Any]:
    if requests is None or isinstance(requests, str) or (isinstance(requests, Tensor) and requests.dim() == 1):
        return [requests] * count
    given = list(requests) if isinstance(requests, Sequence | Tensor) and not isinstance(requests, bytes) else None
    if given is None or len(given) != count:
        raise RequestError(
            f"request: found {reprlib.repr(requests)} for {count} histories, expected a text or None for all, or a "
            "list with one for each."
        )
    for row, request in enumerate(given):
        if not (request is None or isinstance(request, str | Tensor)):
            raise RequestError(f"request[{row}]: found {reprlib.repr(request)}, expected a text, a vector or None.")
    return given


def _for_rows(name: str, given: Any, count: int) -> list[Any]:
    """Return entries for each row, one for all rows, or none; an entry is a collection."""
    if given is None or (_is_collection(given) and not len(given)):
        return [] if given is None or name != "candidates" else [[]]
    if not _is_collection(given):
        raise DataError(f"{name}: found {reprlib.repr(given)}, expected a collection, or one for each history.")
    entries = list(given)
    if not _is_collection(entries[0]):
        return [entries]
    if len(entries) != count:
        raise DataError(f"{name}: found {len(entries)} for {count} histories, expected one for all or one for each.")
    return entries


def _item_sets(name: str, given: Any, count: int, items: int) -> list[Tensor]:
    entries = _for_rows(name, given, count)
    found = []
    for row, entry in enumerate(entries):
        with _naming(name if len(entries) == 1 else f"{name}[{row}]"):
            found.append(as_history(list(entry) if isinstance(entry, Set) else entry, items))
    return found
