"""What a catalogue knows of its items beside titles and attributes: columns of texts and of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError

Texts = Mapping[str, tuple[str, ...]]
Numbers = Mapping[str, Tensor]


def check_text_tuple(name: str, values: object) -> None:
    """Raise a DataError unless a value is a tuple of texts that can be written as UTF-8."""
    if not isinstance(values, tuple):
        raise DataError(f"{name}: found {type(values).__name__}, expected a tuple of str.")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{name}[{position}]: found {type(value).__name__}, expected a string.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{name}[{position}]: {value!r} cannot be written as UTF-8.") from error


def check_columns(texts: object, numbers: object, items: int) -> None:
    """Raise a DataError unless both are mappings from names to columns with a text or a number for each item."""
    for field, columns in (("texts", texts), ("numbers", numbers)):
        if not isinstance(columns, Mapping):
            raise DataError(f"{field}: found {type(columns).__name__}, expected a mapping from names to columns.")
        check_text_tuple(f"names of {field}", tuple(columns))
        for name, column in columns.items():
            where = f"{field}[{name!r:.100}]"
            if field == "texts":
                check_text_tuple(where, column)
            else:
                _check_numbers(where, column)
            if len(column) != items:
                raise DataError(f"{where}: found {len(column)}, expected one for each of the {items} item_ids.")


def _check_numbers(where: str, column: object) -> None:
    if not isinstance(column, Tensor) or column.dtype != torch.float64 or column.dim() != 1:
        kind = f"{column.dtype} of shape {tuple(column.shape)}" if isinstance(column, Tensor) else type(column).__name__
        raise DataError(f"{where}: found {kind}, expected torch.float64 of shape (items,).")
    if bool(column.isinf().any()):
        raise DataError(f"{where}: found an infinite number, expected finite ones, and NaN where one is unknown.")


def joined_columns(first: tuple[Texts, Numbers, int], second: tuple[Texts, Numbers, int]) -> tuple[Texts, Numbers]:
    """Return the columns of two catalogues, the second's items last, "" or NaN where one lacks a column.

    Args:
        first: Texts, numbers and number of items.
        second: The same of the items to add.
    """
    (texts, numbers, items), (more_texts, more_numbers, added) = first, second
    blank, unknown = (("",) * items, ("",) * added), [torch.full((n,), math.nan).double() for n in (items, added)]
    return (
        {name: texts.get(name, blank[0]) + more_texts.get(name, blank[1]) for name in {**texts, **more_texts}},
        {
            name: torch.cat([numbers.get(name, unknown[0]).cpu(), more_numbers.get(name, unknown[1]).cpu()])
            for name in {**numbers, **more_numbers}
        },
    )


def columns_as_json(texts: Texts, numbers: Numbers) -> dict[str, Any]:
    """Return the columns as JSON values, null for NaN; a field without columns is left out, as in earlier versions."""
    values = {name: [None if math.isnan(number) else number for number in numbers[name].tolist()] for name in numbers}
    fields = {"texts": dict(texts), "numbers": values}
    return {field: columns for field, columns in fields.items() if columns}


def columns_from_json(document: Mapping[str, Any]) -> tuple[Texts, Numbers]:
    """Return the columns of texts and of numbers of a document; raise a DataError if they are of another form."""
    texts, numbers = (document.get(field, {}) for field in ("texts", "numbers"))
    for field, columns in (("texts", texts), ("numbers", numbers)):
        bad = [] if isinstance(columns, dict) else [columns]
        bad = bad or [column for column in columns.values() if not isinstance(column, list)]
        if bad:
            raise DataError(f"{field}: found {type(bad[0]).__name__}, expected an object of lists.")
    return {name: tuple(column) for name, column in texts.items()}, {
        name: _as_tensor(name, column) for name, column in numbers.items()
    }


def _as_tensor(name: str, column: Sequence[object]) -> Tensor:
    for position, value in enumerate(column):
        if value is not None and type(value) not in (int, float):
            found = type(value).__name__
            raise DataError(f"numbers[{name!r:.100}][{position}]: found {found}, expected a number or null.")
    return torch.tensor([math.nan if value is None else value for value in column], dtype=torch.float64)
