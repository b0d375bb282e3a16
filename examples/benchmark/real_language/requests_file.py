"""Read recommendations from human film dialogues (ReDial's requests) from a file."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.storage import open_regular, parse_json

MAX_REDIAL_BYTES = 64 * 2**20
MAX_TEXT = 10_000
MAX_HISTORY = 1_000

_FIELDS = ("dialogue", "history", "request", "target")
_SAID, _NAMES_TARGET = "said", "names_target"


@dataclass(frozen=True)
class RedialRequest:
    """One recommendation that a seeker liked, and the seeker's words before it.

    Args:
        dialogue: The dialogue's id; several requests may be from one.
        history: Titles that the seeker had said they liked, in the order of the dialogue; may be empty.
        request: The seeker's utterances before the recommendation, each title in them replaced by ``[movie]``, or as
            they were said, titles included.
        target: The title that was recommended and liked.
    """

    dialogue: str
    history: tuple[str, ...]
    request: str
    target: str


def read_redial(path: str | os.PathLike[str]) -> tuple[RedialRequest, ...]:
    """Read requests from a file of JSON lines.

    Args:
        path: The file, at most ``MAX_REDIAL_BYTES`` long, UTF-8. Each line is an object with exactly ``dialogue``,
            ``history`` (a list), ``request`` and ``target``, all text. It may have ``said``, too, the request with its
            titles, which is then read in its place, and ``names_target``, true for a line to leave out because it says
            the target's title.

    Raises:
        DataError: If it is not such a file; the message names the line. A text may have ``MAX_TEXT`` characters, a
            history ``MAX_HISTORY`` titles; dialogue, target and titles may not be blank.
    """
    source = Path(path)
    try:
        with open_regular(source, "a file of requests in JSON lines", MAX_REDIAL_BYTES) as (file, size):
            data = file.read(size)
    except AdapterFileError as error:
        raise DataError(str(error)) from error
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if not lines:
        raise DataError(f"{source}: the file is empty. Expected one JSON object a line.")
    read = (_parse_line(f"{source}, line {number}", line) for number, line in enumerate(lines, start=1))
    return tuple(request for request in read if request is not None)


def _parse_line(place: str, line: bytes) -> RedialRequest | None:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{place}: not a JSON object in UTF-8 ({error}).") from error
    said = isinstance(record, dict) and _SAID in record
    fields = (*_FIELDS, _SAID, _NAMES_TARGET) if said else _FIELDS
    if not isinstance(record, dict) or sorted(record) != sorted(fields):
        found = sorted(record) if isinstance(record, dict) else record
        raise DataError(f"{place}: found {reprlib.repr(found)}, expected an object with exactly {', '.join(fields)}.")
    history = record["history"]
    if not isinstance(history, list) or len(history) > MAX_HISTORY:
        raise DataError(f"{place}: history: expected a list of at most {MAX_HISTORY} titles.")
    if said and not isinstance(record[_NAMES_TARGET], bool):
        raise DataError(
            f"{place}: {_NAMES_TARGET}: found {reprlib.repr(record[_NAMES_TARGET])}, expected true or false."
        )
    request = RedialRequest(
        dialogue=_text(place, "dialogue", record["dialogue"]),
        history=tuple(_text(place, f"history[{position}]", title) for position, title in enumerate(history)),
        request=_text(place, _SAID if said else "request", record[_SAID if said else "request"], may_be_blank=True),
        target=_text(place, "target", record["target"]),
    )
    return None if said and record[_NAMES_TARGET] else request


def _text(place: str, name: str, value: Any, may_be_blank: bool = False) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (may_be_blank or value.strip()):
        kind = "text" if may_be_blank else "text that is not blank,"
        raise DataError(
            f"{place}: {name}: found {reprlib.repr(value)}, expected {kind} of at most {MAX_TEXT} characters."
        )
    return value
