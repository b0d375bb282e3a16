"""The catalogue of items: ids, titles, attributes; and its file."""

from __future__ import annotations

import difflib
import hashlib
import heapq
import html
import html.entities
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft.encoders import one_form
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.item_columns import (
    Numbers,
    Texts,
    check_columns,
    check_text_tuple,
    columns_as_json,
    columns_from_json,
    joined_columns,
)
from cramer_peft.recsys.data.table import counted, listed
from cramer_peft.recsys.reading import as_path, read_object
from cramer_peft.storage import write_bytes

CATALOGUE_FILE = "catalogue.json"  # inside a recommender's folder
MAX_CATALOGUE_BYTES = 2**28
MAX_CATALOGUE_CELLS = 2**28
_COMPARED = 200  # characters of a text that the search for near ones looks at, since it takes quadratic time
_NEAR = 5000  # texts that the search looks at closely; of more, those that share most pairs of letters
_PAIRS = 30  # pairs of letters that are compared

_ROMANCE_ARTICLES = ("la", "le", "les", "l'", "il", "lo", "gli", "el", "los", "las", "un", "une")
_ARTICLES = frozenset({"the", "a", "an", "der", "die", "das", "ein", "eine", *_ROMANCE_ARTICLES})
_ENTITY = re.compile(r"&(#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|\w+;)", re.ASCII)
_SEMICOLONS = re.compile(r" ?(?:; ?)+")
_FORMAT = "cramer-peft-catalogue"
_VERSION = 1
_KEYS = ("format", "version", "item_ids", "titles", "attributes", "item_attributes")
_DESCRIBED = "described_items"  # only in files of catalogues that items were added to
_OPTIONAL = (_DESCRIBED, "texts", "numbers")
POPULARITY = "popularity"  # the column of numbers that training sets
SAID = "said"  # the column of texts that training sets: what was said before the item was met, "|" between two


@dataclass(frozen=True, eq=False, repr=False)
class Catalogue:
    """The items that can be recommended. An item's index is its position in these fields.

    Args:
        item_ids: The items' ids, distinct.
        titles: One title per item; several items may share one.
        attributes: The vocabulary of attributes, sorted and distinct.
        item_attributes: Bool, shape ``(items, attributes)``: True where the item has the attribute.
        described_items: Number of items, from the first, that describe requests and scale the items' features: those
            that an adapter was trained with. None: all. :meth:`with_items` sets it.
        texts: Name of a column → one text per item, "" where there is none; several values are joined by "|".
        numbers: Name of a column → float64, shape ``(items,)``, NaN where unknown.

    Raises:
        DataError: If a field has the wrong type or length, ids or attributes repeat, the vocabulary is not sorted, or
            a text cannot be encoded as UTF-8.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    attributes: tuple[str, ...]
    item_attributes: Tensor
    described_items: int | None = None
    texts: Texts = field(default_factory=dict)
    numbers: Numbers = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("item_ids", "titles", "attributes"):
            check_text_tuple(name, getattr(self, name))
        _check_distinct("item_ids", self.item_ids)
        _check_distinct("attributes", self.attributes)
        if list(self.attributes) != sorted(self.attributes):
            raise DataError("attributes: not sorted. Sort them, and the columns with them.")
        if len(self.titles) != len(self.item_ids):
            raise DataError(
                f"titles: found {len(self.titles)}, expected one for each of the {len(self.item_ids)} item_ids."
            )
        expected = (len(self.item_ids), len(self.attributes))
        check_item_attributes(self.item_attributes, expected)
        count = self.described_items
        if count is not None and (type(count) is not int or not 1 <= count <= len(self.item_ids)):
            raise DataError(
                f"described_items: found {count!r:.100}, expected a whole number from 1 to {len(self.item_ids)}, the "
                "number of item_ids, or None."
            )
        check_columns(self.texts, self.numbers, len(self.item_ids))

    @property
    def described(self) -> int:
        """The number of items, from the first, that describe requests."""
        return len(self) if self.described_items is None else self.described_items

    def with_items(self, items: Catalogue) -> Catalogue:
        """Return a catalogue with other items after these; they describe no requests, as in ``described_items``.

        Args:
            items: The items to add. They may have the attributes of this catalogue, or some of them. Texts and numbers
                that one of both lacks are "" and NaN; nobody has visited the new items, so their popularity is NaN.

        Raises:
            DataError: If an item is in both, or an attribute is in theirs alone.
        """
        twice = [item_id for item_id in items.item_ids if item_id in self.positions]
        if twice:
            raise DataError(f"item_ids: {listed(twice)} are in the catalogue. Add each item once.")
        columns = {name: place for place, name in enumerate(self.attributes)}
        unknown = [name for name in items.attributes if name not in columns]
        if unknown:
            raise DataError(
                f"attributes: {listed(unknown)} are not in the catalogue, so nothing was trained on them; nearest to "
                f"the first: {nearest(unknown[0], self.attributes)}. Leave them out, or train anew."
            )
        flags = torch.zeros(len(items), len(self.attributes), dtype=torch.bool)
        flags[:, [columns[name] for name in items.attributes]] = items.item_attributes.to(flags.device)
        known = {name: column for name, column in items.numbers.items() if name != POPULARITY}
        texts, numbers = joined_columns((self.texts, self.numbers, len(self)), (items.texts, known, len(items)))
        return Catalogue(
            self.item_ids + items.item_ids,
            self.titles + items.titles,
            self.attributes,
            torch.cat([self.item_attributes, flags.to(self.item_attributes.device)]),
            self.described,
            texts,
            numbers,
        )

    def with_popularity(self, counts: Sequence[float] | Tensor) -> Catalogue:
        """Return the catalogue with the column of numbers "popularity": how many visits each item has in training."""
        column = torch.as_tensor(counts).detach().double()
        if bool((column < 0).any()):
            raise DataError(f"counts: found {column.min():g}, expected 0 or more visits of each item.")
        return replace(self, numbers={**self.numbers, POPULARITY: column})

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"Catalogue({counted(len(self), 'item')}, {counted(len(self.attributes), 'attribute')})"

    @cached_property
    def positions(self) -> dict[str, int]:
        """The number of each item, by its id."""
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _title_forms(self) -> list[tuple[str, str]]:
        return [_title_forms(title) for title in self.titles]

    @cached_property
    def title_forms(self) -> frozenset[str]:
        """All titles, in the forms in which they are compared."""
        return frozenset(form for forms in self._title_forms for form in forms)

    def has_title(self, text: str) -> bool:
        """Return True if ``text`` is a whole title, as :meth:`find_title` compares them."""
        return _title_forms(text)[1] in self.title_forms

    def index_of(self, item_id: str) -> int:
        """Return the index of the item with this id; raise a DataError with the nearest ids if there is none."""
        check_text("item_id", item_id)
        try:
            return self.positions[item_id]
        except KeyError:
            raise DataError(
                f"No item has the item_id {item_id!r}. Nearest: {nearest(item_id, self.item_ids)}."
            ) from None

    def find_title(self, text: str) -> int:
        """Return the index of the one item whose title matches ``text``.

        Case does not count, a trailing article counts as a leading one ("Matrix, The" is "The Matrix"), and an HTML
        entity as its character ("Tom &amp; Jerry" is "Tom & Jerry"). An exact match wins, then a title that starts
        with ``text``, then one that contains it.

        Raises:
            DataError: If no title or several match. The message lists the three nearest titles, or the ids of the
                items that share the title.
        """
        check_text("title", text)
        plain, moved = _title_forms(text)
        if not plain:
            raise DataError("The title to look for is blank. Give a title or a part of one.")
        exact = [i for i, forms in enumerate(self._title_forms) if moved in forms]
        if len(exact) > 1:
            ids = ", ".join(repr(self.item_ids[i]) for i in exact[:10])
            raise DataError(f"{len(exact)} items have the title {text!r}: item_id {ids}. Name the item_id.")
        found = exact or self._titles_with_part(plain, moved)
        if len(found) == 1:
            return found[0]
        among = sorted({self.titles[i] for i in found}) or self.titles
        reason = f"{len(found)} titles match" if found else "No title matches"
        raise DataError(f"{reason} {text!r}. Nearest: {nearest(text, among)}. Give the full title.")

    def _titles_with_part(self, plain: str, moved: str) -> list[int]:
        def having(fits: Callable[[str, str], bool]) -> list[int]:
            titles = enumerate(self._title_forms)
            return [i for i, forms in titles if any(fits(form, part) for form in forms for part in (plain, moved))]

        return having(str.startswith) or having(str.__contains__)

    def attribute_names(self, index: int) -> tuple[str, ...]:
        """Return the attributes of the item at ``index``, sorted; raise a DataError if there is no such item."""
        if not 0 <= index < len(self):
            raise DataError(f"Item index {index} is out of range; expected 0 to {len(self) - 1}.")
        return self._attribute_names[index]

    @cached_property
    def _attribute_names(self) -> list[tuple[str, ...]]:
        return [tuple(map(self.attributes.__getitem__, row)) for row in self._columns]

    @property
    def _columns(self) -> list[list[int]]:
        """The numbers of each item's attributes."""
        rows: list[list[int]] = [[] for _ in range(len(self))]
        for item, attribute in self.item_attributes.nonzero().tolist():
            rows[item].append(attribute)
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the catalogue as one JSON file, atomically.

        Raises:
            DataError: If it is too large for :meth:`load`.
        """
        data = _json_bytes({**dict(zip(_KEYS, (_FORMAT, _VERSION, *self._fields), strict=True)), **self._optional})
        if len(data) > MAX_CATALOGUE_BYTES:
            raise DataError(
                f"{path}: the catalogue takes {len(data)} bytes, more than the "
                f"{MAX_CATALOGUE_BYTES} that load accepts. Leave out items or columns, or shorten texts."
            )
        write_bytes(as_path(path), data)

    @property
    def _fields(self) -> tuple[Any, ...]:
        """The values of ``_KEYS[2:]``."""
        return self.item_ids, self.titles, self.attributes, self._columns

    @property
    def _optional(self) -> dict[str, Any]:
        """The values of those of ``_OPTIONAL`` that are set."""
        described = {} if self.described_items is None else {_DESCRIBED: self.described_items}
        return {**described, **columns_as_json(self.texts, self.numbers)}

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 digests: ``item_ids`` of the ids in their order, ``content`` of all fields."""
        fields, optional = self._fields, self._optional
        described = [optional.pop(_DESCRIBED)] if _DESCRIBED in optional else []
        parts = {"item_ids": fields[:1], "content": (*fields, *described, *([optional] if optional else []))}
        return {name: hashlib.sha256(_json_bytes(part)).hexdigest() for name, part in parts.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Catalogue:
        """Read a file written by :meth:`save`; safe for files from strangers.

        Raises:
            DataError: If something in it is not as :meth:`save` writes it.
        """
        source = as_path(path)
        document = read_object(source, "a catalogue written by Catalogue.save", MAX_CATALOGUE_BYTES)
        _check_keys(source, document)
        item_ids, titles, attributes = (_text_tuple(source, document, name) for name in _KEYS[2:5])
        matrix = _dense_attributes(source, document["item_attributes"], len(item_ids), len(attributes))
        try:
            columns = columns_from_json(document)
            return cls(item_ids, titles, attributes, matrix, document.get(_DESCRIBED), *columns)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error


def _json_bytes(values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def check_item_attributes(item_attributes: Tensor, expected: tuple[int, int]) -> None:
    """Raise a DataError unless a tensor is bool and has the expected shape ``(items, attributes)``."""
    if item_attributes.dtype != torch.bool or tuple(item_attributes.shape) != expected:
        raise DataError(
            f"item_attributes: found {item_attributes.dtype} of shape "
            f"{tuple(item_attributes.shape)}, expected torch.bool of shape {expected}."
        )


def _check_distinct(name: str, values: Sequence[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise DataError(f"{name}: {listed(repeated)} more than once; each must be there once.")


def check_text(name: str, value: object) -> None:
    """Raise a DataError unless a value is a text."""
    if not isinstance(value, str):
        raise DataError(f"{name}: found {reprlib.repr(value)} ({type(value).__name__}), expected a text.")


def without_entities(text: str) -> str:
    """Return a text with the character that each HTML entity, such as ``&amp;``, stands for."""
    plain = _ENTITY.sub(lambda found: _character(found[0], found[1]), text)
    return plain if plain == text else without_entities(plain)  # again, for &amp;amp;


def _character(entity: str, name: str) -> str:
    return html.unescape(entity) if name[0] == "#" or name in html.entities.html5 else entity


def title_form(title: str) -> str:
    """Return a title in lower case, with single spaces, none around ";", and without HTML entities."""
    return _SEMICOLONS.sub(";", " ".join(one_form(without_entities(title)).casefold().split())).strip(";")


def _title_forms(title: str) -> tuple[str, str]:
    """Return a title's form as written, and with a trailing article moved to the front."""
    plain = title_form(title)
    body, comma, article = plain.rpartition(", ")
    moved = f"{article} {body}" if comma and article in _ARTICLES else plain
    return plain, moved


def nearest(text: str, among: Sequence[str]) -> str:
    """Return the three texts that are nearest to ``text`` in any case, by their beginnings, quoted, for a message."""
    by_folded = {candidate[:_COMPARED].casefold(): candidate for candidate in among if candidate}
    folded = text[:_COMPARED].casefold()
    near = difflib.get_close_matches(folded, _alike(folded, by_folded), n=3, cutoff=0.0)
    return ", ".join(repr(by_folded[name]) for name in near) or "none"


def _alike(text: str, among: Collection[str]) -> Collection[str]:
    """Return the texts that share most pairs of letters with a text, if there are too many to look at closely."""
    if len(among) <= _NEAR:
        return among
    pairs = {text[start : start + 2] for start in range(min(len(text), _PAIRS))}
    return heapq.nlargest(_NEAR, among, key=lambda candidate: sum(pair in candidate for pair in pairs))


def plain_text(attribute: str) -> str:
    """Return an attribute in lower case, with HTML's names for characters resolved and spaces for underscores."""
    return one_form(html.unescape(attribute)).lower().replace("_", " ")


def _check_keys(path: Path, document: dict[str, Any]) -> None:
    missing = [key for key in _KEYS if key not in document]
    unknown = sorted(set(document) - {*_KEYS, *_OPTIONAL})
    if missing or unknown:
        raise DataError(
            f"{path}: fields missing: {listed(missing) or 'none'}; not expected: "
            f"{listed(unknown) or 'none'}. Expected exactly {', '.join(_KEYS)}."
        )
    if document["format"] != _FORMAT:
        raise DataError(f"{path}: format is {reprlib.repr(document['format'])}, expected {_FORMAT!r}.")
    if type(document["version"]) is not int or document["version"] != _VERSION:
        raise DataError(
            f"{path}: version is {reprlib.repr(document['version'])}, expected {_VERSION}. "
            "Save it again with this version of the library."
        )


def _text_tuple(path: Path, document: dict[str, Any], name: str) -> tuple[str, ...]:
    if not isinstance(document[name], list):
        found = type(document[name]).__name__
        raise DataError(f"{path}: {name}: found {found}, expected a list of strings.")
    return tuple(document[name])


def _dense_attributes(path: Path, rows: object, items: int, attributes: int) -> Tensor:
    if not isinstance(rows, list) or len(rows) != items:
        found = f"{len(rows)} entries" if isinstance(rows, list) else type(rows).__name__
        raise DataError(f"{path}: item_attributes: found {found}, expected a list of {items}.")
    check_cells(path, items, attributes)
    for position, row in enumerate(rows):
        if not _is_index_list(row, attributes):
            raise DataError(
                f"{path}: item_attributes[{position}]: expected a list of increasing integers "
                f"from 0 to {attributes - 1}."
            )
    return flags_of(rows, attributes)


def check_cells(source: str | Path, items: int, attributes: int) -> None:
    """Raise a DataError if a table of items and attributes would be too large to load."""
    if items * attributes > MAX_CATALOGUE_CELLS:
        raise DataError(
            f"{source}: {items} items × {attributes} attributes are more than {MAX_CATALOGUE_CELLS} cells. Leave out "
            "rare attributes: raise min_attribute_items."
        )


def flags_of(rows: Sequence[Sequence[int]], attributes: int) -> Tensor:
    """Return the table with True in the columns that each row names, (rows, attributes) bool."""
    matrix = torch.zeros(len(rows), attributes, dtype=torch.bool)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    columns = torch.tensor([column for row in rows for column in row], dtype=torch.long)
    matrix[torch.repeat_interleave(torch.arange(len(rows)), lengths), columns] = True
    return matrix


def _is_index_list(row: object, limit: int) -> bool:
    if not isinstance(row, list) or any(type(value) is not int for value in row):
        return False
    increasing = all(left < right for left, right in pairwise(row))
    return increasing and (not row or (row[0] >= 0 and row[-1] < limit))
