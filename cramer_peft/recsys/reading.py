"""Bounded reading of the recommender's own files, with errors about data instead of adapters."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Any

from cramer_peft.errors import AdapterFileError, DataError

_BYTES_OF_A_VALUE = 16  # fewer on average, and a file of its size limit would not fit in memory


def read_file(path: Path, expected: str, max_bytes: int | None = None) -> bytes:
    """Return the content of an ordinary file; ``expected`` describes it for the error message."""
    from cramer_peft.storage import open_regular  # with torch: the command's --help need not wait for it

    try:
        with open_regular(path, expected, max_bytes) as (file, size):
            return file.read(size)
    except AdapterFileError as error:
        raise DataError(str(error)) from error


def as_path(value: str | os.PathLike[str]) -> Path:
    """Return a path, given as text or as an object of ``os.PathLike``; raise a DataError for anything else."""
    try:
        return Path(value)
    except TypeError as error:
        raise DataError(f"found {reprlib.repr(value)} in place of a path, expected a str or a Path.") from error


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: names of files may hold other bytes, as half surrogates."""
    return text.encode(errors="replace").decode()


def read_object(path: Path, expected: str, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in a file; arguments as for :func:`read_file`."""
    from cramer_peft.storage import parse_json

    data = read_file(path, expected, max_bytes)
    try:
        values = parse_json(data, max_values=max_bytes // _BYTES_OF_A_VALUE)
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file in UTF-8: {error}. Expected {expected}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: found a JSON {type(values).__name__}, expected an object: {expected}.")
    return values
