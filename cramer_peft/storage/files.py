"""Reading and writing files: atomic writes, strict and bounded reads, JSON and safetensors only."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cramer_peft.errors import AdapterFileError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_JSON_BYTES = 16 * 2**20
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_JSON_DEPTH = 32
_MAX_JSON_CONTAINERS = 2**22
_MAX_JSON_TEXTS = 2**21
_MAX_JSON_NUMBERS = 2**22
_MAX_TENSORS = 2**17
_MAX_INTEGER_DIGITS = 19
_MAX_DIMENSIONS = 16
_STALE_SECONDS = 3600

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorInfo(NamedTuple):
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


# ---------------------------------------------------------------- writing


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    A process that is killed inside leaves the temporary file behind; the next write of ``path`` removes
    those that nobody has touched for an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name[:50]}."  # cut, because a name may be no longer than 255 bytes
    _remove_stale(path.parent, start)
    temporary = path.parent / f"{start}{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        OSError: If the folder cannot be written; what was there is then as it was.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    write_bytes(path, (json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata, atomically."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, metadata={"format": "pt", **metadata}))


def _remove_stale(folder: Path, start: str) -> None:
    """Remove what killed writers left; younger files may be another process's, at work."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(re.escape(start) + r"[0-9a-f]{16}\.tmp", entry.name):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ---------------------------------------------------------------- reading


@contextmanager
def open_regular(path: Path, expected: str, max_bytes: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open an ordinary file for reading; gives it and its size.

    Args:
        path: The file. A pipe, device or folder in its place is refused without waiting on it.
        expected: What it should be, for the messages.
        max_bytes: Size above which it is refused, before anything is read.

    Raises:
        AdapterFileError: If there is no such file, it cannot be read or is too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise AdapterFileError(f"{path} does not exist. Expected {expected}.") from error
    except (OSError, ValueError) as error:
        raise AdapterFileError(f"{path} cannot be opened: {error}. Expected {expected}.") from error
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise AdapterFileError(f"{path} is not an ordinary file. Expected {expected}.")
        if max_bytes is not None and info.st_size > max_bytes:
            raise AdapterFileError(
                f"{path} has {info.st_size} bytes, which is larger than the {max_bytes} bytes that are read of "
                f"{expected}."
            )
        with open(handle, "rb", closefd=False) as file:
            yield file, info.st_size
    except OSError as error:
        raise AdapterFileError(f"{path} cannot be read: {error}.") from error
    finally:
        os.close(handle)


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON, more strictly than ``json.loads``.

    Refused too: a key twice in one object, NaN, infinity and numbers that overflow to it, integers beyond
    19 digits, lone surrogates, nesting deeper than 32, and millions of values.

    Raises:
        ValueError: If it is not such JSON.
    """
    text = data.decode("utf-8")
    if text.count("[") + text.count("{") > _MAX_JSON_CONTAINERS:
        raise ValueError(f"more than {_MAX_JSON_CONTAINERS} lists and objects")
    # A text opens with a quote that has no backslash before it, and closes with one that mostly has none.
    if text.count('"') - text.count('\\"') > 2 * _MAX_JSON_TEXTS:
        raise ValueError(f"more than {_MAX_JSON_TEXTS} keys and texts")
    numbers = itertools.count(1)
    try:
        values = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_constant=_no_constant,
            parse_float=lambda digits: _finite_number(digits, next(numbers)),
            parse_int=lambda digits: _integer(digits, next(numbers)),
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(values)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(values, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice in one object")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_number(text: str, count: int) -> float:
    _check_count(count)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _integer(text: str, count: int) -> int:
    _check_count(count)
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has more than {_MAX_INTEGER_DIGITS} digits")
    return int(text)


def _check_count(count: int) -> None:
    if count > _MAX_JSON_NUMBERS:
        raise ValueError(f"more than {_MAX_JSON_NUMBERS} numbers")


def _check_depth(values: Any) -> None:
    stack = [(values, 1)] if isinstance(values, (dict, list)) else []
    while stack:
        value, depth = stack.pop()
        if depth > _MAX_JSON_DEPTH:
            raise ValueError(f"nested more than {_MAX_JSON_DEPTH} deep")
        inside = value.values() if isinstance(value, dict) else value
        stack.extend((item, depth + 1) for item in inside if isinstance(item, (dict, list)))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; see :func:`parse_json` for what is refused beyond other readers.

    Raises:
        AdapterFileError: If the file is missing, too large, or not a JSON object in UTF-8.
    """
    with open_regular(path, "a JSON file written by save_pretrained", _MAX_JSON_BYTES) as (file, size):
        data = file.read(size)
    try:
        values = parse_json(data)
    except ValueError as error:
        raise AdapterFileError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise AdapterFileError(f"{path} must hold a JSON object, found {type(values).__name__}.")
    return values


def read_layout(path: Path, max_bytes: int | None = None) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """What a safetensors file's header says of its tensors, and the metadata; no tensor is read.

    Args:
        path: The file.
        max_bytes: Size above which it is refused; None: any size.

    Raises:
        AdapterFileError: If the file is missing, too large, truncated or otherwise not safetensors.
    """
    with open_regular(path, "a safetensors file", max_bytes) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise AdapterFileError(f"{path} is not a readable safetensors file (truncated or corrupt?).")
        header = file.read(length)
    try:
        return _parse_layout(header, size - 8 - length)
    except ValueError as error:
        raise AdapterFileError(
            f"{path} is not a readable safetensors file (truncated or corrupt?): {error}."
        ) from error


def _parse_layout(header: bytes, data_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    values = parse_json(header)
    if not isinstance(values, dict):
        raise ValueError("its header is not a JSON object")
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    if len(values) > _MAX_TENSORS:
        raise ValueError(f"it has {len(values)} tensors, more than {_MAX_TENSORS}")
    layout: dict[str, TensorInfo] = {}
    places: list[tuple[int, int]] = []
    for name, entry in values.items():
        layout[name], place = _parse_entry(name, entry)
        places.append(place)
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError(f"its tensors overlap or leave a gap at byte {min(start, end)}")
        end = stop
    if end != data_bytes:
        raise ValueError(f"its header promises {end} bytes of tensors, the file has {data_bytes}")
    return layout, metadata


def _parse_entry(name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:200]!r} must have dtype, shape and data_offsets")
    dtype, shape, place = (entry[key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name[:200]!r} has the dtype {str(dtype)[:40]!r}, expected one of {', '.join(_DTYPES)}")
    if not _is_counts(shape) or not _is_counts(place) or len(place) != 2 or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name[:200]!r} has an impossible shape or impossible data_offsets")
    if place[1] - place[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{name[:200]!r} has another size than its shape")
    return TensorInfo(tuple(shape), _DTYPES[dtype]), (place[0], place[1])


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def read_safetensors(path: Path, max_bytes: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file, on the CPU.

    Args:
        path: The file.
        max_bytes: Size above which it is refused; None: any size.

    Raises:
        AdapterFileError: If the file is missing, too large, truncated or otherwise not safetensors, or a
            tensor holds NaN or infinity.
    """
    _, metadata = read_layout(path, max_bytes)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # Cloned, because the file is mapped: replacing it on disk must not reach the tensors.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise AdapterFileError(
            f"{path} is not a readable safetensors file (truncated or corrupt?): {error}."
        ) from error
    check_finite(tensors, str(path))
    return tensors, metadata


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse tensors whose values are none: NaN, infinity, what float32 cannot hold, or no truth value.

    Args:
        tensors: Tensors by name; those of whole numbers pass.
        where: What they are from, for the message.

    Raises:
        AdapterFileError: If one does.
    """
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    if bad:
        raise AdapterFileError(f"{where}: {bad[0][:200]!r} holds NaN or infinity ({len(bad)} tensors do).")
    odd = [name for name, value in tensors.items() if value.dtype == torch.bool and not _is_truth(value)]
    if odd:
        raise AdapterFileError(f"{where}: {odd[0][:200]!r} is bool, but holds bytes other than 0 and 1.")


def _is_finite(value: Tensor) -> bool:
    # isfinite is not there for float8, and float64 may hold numbers that the gates' float32 cannot
    return bool(torch.isfinite(value.float() if value.element_size() in (1, 8) else value).all())


def _is_truth(value: Tensor) -> bool:
    return bool((value.view(torch.uint8) <= 1).all())
