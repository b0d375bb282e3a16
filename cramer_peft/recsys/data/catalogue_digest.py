"""The digest of a catalogue, kept beside weights in which items are numbers.

An item's number is its place in the catalogue, so weights that were trained on one catalogue mean other items with
another one. The digest of a backbone covers the items' ids in their order; titles and attributes may be read anew from
other fields. That of an adapter also covers these, because its requests are described by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.reading import read_object
from cramer_peft.storage import write_json

DIGEST_FILE = "catalogue_digest.json"
_MEANINGS = {
    "item_ids": "other items, or the same in another order: each number would mean another item",
    "content": "other titles or attributes, which describe requests to the adapter",
}
_MAX_BYTES = 1 << 16


def check_count(model: Any, catalogue: Catalogue, histories: Iterable[Tensor] = ()) -> None:
    """Raise a DataError if a backbone scores another number of items, or histories an item beyond the catalogue."""
    known = getattr(model, "num_items", len(catalogue))
    if known != len(catalogue):
        raise DataError(
            f"catalogue: found {len(catalogue)} items, but the backbone scores {known}. Give the catalogue that it was "
            "trained on."
        )
    highest = max((int(history.max()) for history in histories if len(history)), default=-1)
    if highest >= len(catalogue):
        raise DataError(
            f"split: found the item index {highest}, but the catalogue has {len(catalogue)} items. Give the catalogue "
            "and the split of one data set."
        )


def write_digest(folder: Path, catalogue: Catalogue, content: bool) -> None:
    """Write the digest of the item ids into the folder of some weights, and that of the ``content`` if it matters."""
    digests = catalogue.digests
    write_json(folder / DIGEST_FILE, digests if content else {"item_ids": digests["item_ids"]})


def check_digest(folder: Path, catalogue: Catalogue, own: Path | None = None) -> None:
    """Raise a DataError if the weights in a folder were trained on another catalogue.

    Folders of earlier versions have no digest; then only the file ``own``, if it is there, tells their items.
    """
    path = folder / DIGEST_FILE
    if path.exists():
        stored = read_object(path, "the digest of a catalogue", _MAX_BYTES)
    elif own is not None and own.is_file():
        path, stored = own, {"item_ids": Catalogue.load(own).digests["item_ids"]}
    else:
        return
    expected = catalogue.digests
    for name in ("item_ids", *stored):
        found, wanted = str(stored.get(name)), expected.get(name, "no such digest")
        if found != wanted:
            raise DataError(
                f"{path}: {name}: found the digest {found[:12]}…, expected {wanted[:12]}…, that of the "
                f"{len(catalogue)} items in use: the weights in {folder} were trained on a catalogue with "
                f"{_MEANINGS.get(name, 'other fields')}. Use that catalogue with them, or train anew."
            )
