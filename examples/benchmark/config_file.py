"""Read a command's settings from a JSON file, and check every field before anything runs."""

from __future__ import annotations

import reprlib
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cramer_peft.errors import AdapterFileError, ConfigError
from cramer_peft.storage import open_regular, parse_json

_Settings = TypeVar("_Settings")
_MAX_BYTES = 2**20
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_LISTS = {str: "texts", int: "whole numbers"}


def read_config(path: Path, kind: type[_Settings]) -> _Settings:
    """Return settings whose fields come from a JSON object; fields that it lacks have their defaults.

    Args:
        path: The file.
        kind: A dataclass. Its fields are text, numbers, truth values, one of them or None, or tuples of one of them
            (lists in JSON). ``metadata["least"]`` of a field is the least value of its numbers.

    Raises:
        ConfigError: If the file cannot be read, or a field is unknown, has a wrong type or is too small.
    """
    try:
        with open_regular(path, "a JSON file of settings", _MAX_BYTES) as (file, size):
            values = parse_json(file.read(size))
    except AdapterFileError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {reprlib.repr(values)}, expected a JSON object of settings.")
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind)  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: found the field {name!r}, expected one of {', '.join(known)}.")
    found = {
        name: _checked(f"{path}: {name}", value, hints[name], known[name].metadata.get("least"))
        for name, value in values.items()
    }
    return kind(**found)


def _checked(place: str, value: Any, hint: Any, least: float | None) -> Any:
    """Return a value of the type that the hint names, lists as tuples."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if not isinstance(value, list):
            raise _wrong(place, value, f"a list of {_LISTS[kind]}")
        return tuple(_checked(f"{place}[{number}]", each, kind, least) for number, each in enumerate(value))
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        (hint,) = set(get_args(hint)) - {type(None)}
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise _wrong(place, value, _NAMES[hint])
    if least is not None and value < least:
        raise _wrong(place, value, f"{_NAMES[hint]} of at least {least}")
    return value


def _wrong(place: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{place}: found {reprlib.repr(value)}, expected {expected}.")
