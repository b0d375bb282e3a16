"""Finds the items of a history by id or by title, at a cost that does not grow with the catalogue."""

from __future__ import annotations

from collections import defaultdict

from cramer_peft.recsys.data.catalogue import Catalogue

from .refused import quoted


class ItemLookup:
    """Items by id and by whole title; letter case and spacing of titles do not matter.

    Titles are not guessed: a part of one is not found. ``Catalogue.find_title`` does more, but searches the whole
    catalogue, which a server must not do at a stranger's word.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._item_ids = catalogue.item_ids
        self._by_id = catalogue.positions
        self._by_title: dict[str, list[int]] = defaultdict(list)
        for index, title in enumerate(catalogue.titles):
            self._by_title[_plain(title)].append(index)

    def find(self, entry: object) -> int:
        """The index of the item that an entry of a history means.

        Args:
            entry: An item id or title; a number (an id); or ``{"item_id": …}`` or ``{"title": …}``, which say which.

        Raises:
            LookupError: If there is no such item or several; the message says so and what to do.
        """
        if isinstance(entry, dict) and len(entry) == 1:
            ((kind, value),) = entry.items()
            if kind == "item_id" and _is_id(value):
                return self._one(value, [self._by_id.get(str(value))], "item id")
            if kind == "title" and isinstance(value, str):
                return self._one(value, self._titled(value), "title")
        if not _is_id(entry):
            raise LookupError(
                f'found {quoted(entry)}, expected an item id, a title, {{"item_id": …}} or {{"title": …}}'
            )
        found = [self._by_id.get(str(entry))]
        if isinstance(entry, str):
            titled = [index for index in self._titled(entry) if index != found[0]]
            if titled and found[0] is not None:
                raise LookupError(
                    f'{quoted(entry)} is the id of one item and the title of another: send {{"item_id": …}} or '
                    '{"title": …}'
                )
            found += titled
        return self._one(entry, found, "item id or title")

    def _titled(self, title: str) -> list[int]:
        return self._by_title.get(_plain(title), [])

    def _one(self, entry: object, found: list[int | None] | list[int], what: str) -> int:
        there = [index for index in found if index is not None]
        if not there:
            raise LookupError(f"no item has the {what} {quoted(entry)}")
        if len(there) > 1:
            ids = ", ".join(quoted(self._item_ids[index]) for index in there[:5])
            raise LookupError(f"{len(there)} items have the title {quoted(entry)}: send the item id, of {ids}")
        return there[0]


def _plain(title: str) -> str:
    return " ".join(title.casefold().split())


def _is_id(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)
