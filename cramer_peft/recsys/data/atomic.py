"""Reading of RecBole atomic files as typed tables.

An atomic file is tab-separated UTF-8 text whose first line names and types its fields, for example
``user_id:token<TAB>item_id:token<TAB>timestamp:float``. Nothing is quoted in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cramer_peft.errors import AdapterFileError, DataError, require
from cramer_peft.storage import open_regular

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped, unused-ignore]

MAX_ATOMIC_BYTES = 4 * 2**30
MAX_FIELDS = 4096
FIELD_TYPES = ("token", "token_seq", "float", "float_seq", "str")

_MISSING_FLOATS = frozenset({"", "nan"})


def read_atomic(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read one RecBole atomic file.

    Args:
        path: The file. Ends of line may be LF or CRLF, a byte-order mark is skipped, quote
            characters are plain text, blank lines at the end are ignored.

    Returns:
        One column per field, one row per line. ``float`` fields are float64, where an empty field
        is NaN; all other fields (also ``float_seq``) are ``str`` and not split.

    Raises:
        DataError: If ``path`` is not a file, is larger than ``MAX_ATOMIC_BYTES``, empty or not UTF-8, its
            header is not made of ``name:type`` with a known type and distinct names (at most
            ``MAX_FIELDS``), a line has another number of fields than the header, or a ``float`` field
            holds no number.
        MissingExtraError: If pandas is not installed.
    """
    return read_typed(Path(path))[0]


def read_typed(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the table of ``path`` and the type of each of its columns."""
    pd = require("pandas", extra="demo")
    lines = _read_lines(path)
    types = _parse_header(path, lines[0])
    columns = _split_columns(path, lines[1:], len(types))
    # object, not pandas' inferred string type, so that versions 2 and 3 give the same
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in zip(types, columns, strict=True)})
    for name, kind in types.items():
        if kind == "float":
            frame[name] = _parse_floats(path, name, frame[name])
    return frame, types


def _read_lines(path: Path) -> list[str]:
    try:
        with open_regular(path, "a RecBole atomic file (.inter or .item)", MAX_ATOMIC_BYTES) as (file, size):
            data = file.read(size)
    except AdapterFileError as error:
        raise DataError(str(error)) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Convert the file to UTF-8 first."
        ) from error
    # only LF and CRLF end a line: str.splitlines would also cut at characters inside titles
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty. Expected a header line of name:type fields.")
    return lines


def _parse_header(path: Path, header: str) -> dict[str, str]:
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
        if kind not in FIELD_TYPES:
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


def _parse_floats(path: Path, name: str, column: pd.Series) -> pd.Series:
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


def listed(values: Sequence[str], limit: int = 5) -> str:
    """The first few values, quoted, for a message."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more
