"""RecBole atomic files as tables of text.

An atomic file is tab-separated UTF-8 text. Its first line names and types the fields, for example
``user_id:token<TAB>item_id:token<TAB>timestamp:float``. The format has no quoting.
"""

from __future__ import annotations

import os
from pathlib import Path

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.table import Table
from cramer_peft.recsys.reading import as_path, read_file

MAX_ATOMIC_BYTES = 4 * 2**30
MAX_FIELDS = 4096
TEXT_TYPES = ("token", "token_seq", "str")


def read_atomic(path: str | os.PathLike[str]) -> Table:
    """Read one RecBole atomic file; its fields may have any type, since those that are used are checked where they are.

    Raises:
        DataError: If the file is no atomic file.
    """
    path = as_path(path)
    lines = _read_lines(path)
    types = _parse_header(path, lines[0])
    columns = dict(zip(types, _split_columns(path, lines[1:], len(types)), strict=True))
    return Table(str(path), tuple(types), columns.__getitem__, range(2, len(lines) + 1), kinds=types)


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
