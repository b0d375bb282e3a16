"""RecBole atomic files as typed tables.

An atomic file is tab-separated UTF-8 text. Its first line names and types the fields, for example
``user_id:token<TAB>item_id:token<TAB>timestamp:float``. The format has no quoting.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.reading import as_path, read_file

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

MAX_ATOMIC_BYTES = 4 * 2**30
MAX_FIELDS = 4096
FIELD_TYPES = ("token", "token_seq", "float", "float_seq", "str")
TEXT_TYPES = ("token", "token_seq", "str")

_MISSING_FLOATS = frozenset({"", "nan"})


def read_atomic(path: str | os.PathLike[str], as_text: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read one RecBole atomic file, and the type of each of its fields.

    ``float`` fields are float64, NaN where empty, all others unsplit ``str``. With ``as_text`` all are ``str`` and may
    have any type: for callers who check the fields that they use, so that the others may hold anything.
    """
    path = as_path(path)
    pd = require("pandas", extra="demo")
    lines = _read_lines(path)
    types = _parse_header(path, lines[0], as_text)
    columns = _split_columns(path, lines[1:], len(types))
    # dtype object: pandas 2 and 3 infer different string types
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in zip(types, columns, strict=True)})
    for name, kind in types.items():
        if kind == "float" and not as_text:
            frame[name] = parse_floats(path, name, frame[name])
    return frame, types


def _read_lines(path: Path) -> list[str]:
    data = read_file(path, "a RecBole atomic file (.inter or .item)", MAX_ATOMIC_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Convert the file to UTF-8 first."
        ) from error
    # str.splitlines would also cut at characters inside titles; only LF and CRLF end a line here
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty. Expected a header line of name:type fields.")
    return lines


def _parse_header(path: Path, header: str, any_type: bool) -> dict[str, str]:
    types: dict[str, str] = {}
    if header.count("\t") >= MAX_FIELDS:
        raise DataError(f"{path}, line 1: more than {MAX_FIELDS} fields. Expected tab-separated name:type fields.")
    for field in header.split("\t"):
        name, colon, kind = field.rpartition(":")
        if not colon or not name:
            raise DataError(
                f"{path}, line 1: field {field!r} of the header is not of the form name:type. "
                "Expected for example 'item_id:token', fields separated by tabs."
            )
        if kind not in FIELD_TYPES and not any_type:
            raise DataError(
                f"{path}, line 1: field {name!r} has the unknown type {kind!r}. "
                f"Expected one of {', '.join(FIELD_TYPES)}."
            )
        if name in types:
            raise DataError(f"{path}, line 1: the field {name!r} is there twice. Rename one.")
        types[name] = kind
    return types


def _split_columns(path: Path, lines: list[str], fields: int) -> list[list[str]]:
    for number, line in enumerate(lines, start=2):
        if line.count("\t") != fields - 1:
            raise DataError(
                f"{path}, line {number}: found {line.count(chr(9)) + 1} tab-separated fields, "
                f"expected {fields} as in the header."
            )
    flat = "\t".join(lines).split("\t") if lines else []
    return [flat[start::fields] for start in range(fields)]


def parse_floats(path: Path, name: str, column: pd.Series) -> pd.Series:
    """Return a field's text as float64, NaN where it is empty; raise a DataError at the first that is no number."""
    pd = require("pandas", extra="demo")
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    doubtful = column[numbers.isna()]
    bad = doubtful[~doubtful.str.strip().str.lower().isin(_MISSING_FLOATS)]
    if len(bad):
        raise DataError(
            f"{path}, line {int(bad.index[0]) + 2}: field {name!r} holds {bad.iloc[0]!r}, which is "
            "not a number, but the header types it float. Correct the value or type it token."
        )
    return numbers


def check_fields(path: Path, types: dict[str, str], needed: dict[str, str | None]) -> None:
    """Raise a DataError if a field is missing; ``needed`` is field → the argument that names another one."""
    missing = [name for name in needed if name not in types]
    if missing:
        arguments = [argument for name in missing if (argument := needed[name])]
        hint = f" Name another one with {' and '.join(arguments)}." if arguments else ""
        raise DataError(f"{path}: fields missing: {', '.join(missing)}; fields there: {', '.join(types)}.{hint}")


def check_types(path: Path, types: dict[str, str], expected: dict[str, str]) -> None:
    """Raise a DataError if a field has another type than expected."""
    for name, kind in expected.items():
        if types[name] != kind:
            raise DataError(f"{path}, line 1: field {name!r} has type {types[name]}, expected {kind}.")


def refuse_blank(path: Path, column: pd.Series) -> None:
    """Raise a DataError if one of a field's ids is blank."""
    blank = column[column.str.strip() == ""]
    refuse(path, blank, "field {name!r} is blank ({lines} such lines), expected an id.", name=column.name)


def refuse(path: Path, bad: pd.Series, message: str, **named: str) -> None:
    """Raise a DataError that names the first line with one of the ``bad`` values, if there are any."""
    if len(bad):
        ids = list(dict.fromkeys(bad))
        text = message.format(lines=len(bad), first=bad.iloc[0], n=len(ids), ids=listed(ids), **named)
        raise DataError(f"{path}, line {int(bad.index[0]) + 2}: {text}")


def listed(values: Sequence[str], limit: int = 5) -> str:
    """Return the first few values, quoted, for a message."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more
