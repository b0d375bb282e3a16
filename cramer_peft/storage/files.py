"""Atomic writing, and strict and bounded reading, of JSON and safetensors files."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cramer_peft.errors import AdapterFileError

AnyPath = str | os.PathLike[str]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_JSON_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 32 * 2**20  # enough for 2**17 tensors
_MAX_JSON_DEPTH = 32
_MAX_JSON_VALUES = 2**22
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
    """The shape and dtype of a tensor, from a file's header."""

    shape: tuple[int, ...]
    dtype: torch.dtype


# ---------------------------------------------------------------- writing


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends without an error.

    Files that a killed process left behind are removed by the next write of ``path``, after an hour.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name[:50]}."  # cut, because a file name has at most 255 bytes
    _remove_stale(path.parent, start)
    temporary = path.parent / f"{start}{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files; all of them are complete on the disk before the first takes its place."""
    with ExitStack() as stack:
        for path, data in files.items():
            with stack.enter_context(atomic_file(path)).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def write_json(path: AnyPath, values: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    write_bytes(path, json_bytes(values))


def json_bytes(values: Any) -> bytes:
    """Return JSON with sorted keys."""
    return (json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_safetensors(path: AnyPath, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata, atomically."""
    write_bytes(path, safetensors_bytes(tensors, metadata))


def safetensors_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file of tensors and text metadata."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(plain, metadata={"format": "pt", **metadata})


def _remove_stale(folder: Path, start: str) -> None:
    """Remove the temporary files of killed writers; younger ones may belong to a process that is still writing."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if re.fullmatch(re.escape(start) + r"[0-9a-f]{16}\.tmp", entry.name):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, if the system can."""
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
def open_regular(path: AnyPath, expected: str, max_bytes: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open an ordinary file for reading, or raise :class:`AdapterFileError`; gives it and its size.

    A pipe, device or folder in its place is refused without waiting on it, a file above ``max_bytes`` unread.
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


def check_inside(folder: AnyPath, path: AnyPath) -> None:
    """Refuse a link that leads out of the folder of an adapter or a backbone.

    The Hugging Face cache is allowed: its snapshots are links into a folder ``blobs`` beside them.
    """
    try:
        target, home = Path(path).resolve(), Path(folder).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise AdapterFileError(f"{path} cannot be found: {error}.") from error
    allowed = [home]
    allowed += [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"][:1]
    if not any(root in target.parents for root in allowed):
        raise AdapterFileError(
            f"{path} is a link that leads out of its folder, to {target}. Copy the file into the folder, or give the "
            "folder where it is."
        )


def parse_json(data: bytes, max_values: int | None = None) -> Any:
    """Parse UTF-8 JSON, or raise ``ValueError``, more strictly than ``json.loads``.

    It also refuses a key twice in one object, NaN, infinity and numbers that overflow to it, integers of more than 19
    digits, lone surrogates, nesting deeper than 32, and more than ``max_values`` values; None: four million.
    """
    most = _MAX_JSON_VALUES if max_values is None else max_values
    text = data.decode("utf-8")
    # Counted before anything is made of them: each value follows a comma or an opening bracket.
    if text.count(",") + text.count("[") + text.count("{") > most:
        raise ValueError(f"more than {most} values")
    try:
        values = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_values(values)
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


def _check_values(values: Any) -> None:
    """Refuse numbers that are too large, and nesting that is too deep."""
    stack = [(values, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, (dict, list)):
            if depth >= _MAX_JSON_DEPTH:
                raise ValueError(f"nested more than {_MAX_JSON_DEPTH} deep")
            for item in value.values() if isinstance(value, dict) else value:
                if not isinstance(item, str):
                    stack.append((item, depth + 1))
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number is too large")
        elif isinstance(value, int) and abs(value) >= 10**_MAX_INTEGER_DIGITS:
            raise ValueError(f"an integer has more than {_MAX_INTEGER_DIGITS} digits")


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object, as strictly as :func:`parse_json`, or raise :class:`AdapterFileError`."""
    with open_regular(path, "a JSON file written by save_pretrained", _MAX_JSON_BYTES) as (file, size):
        data = file.read(size)
    try:
        values = parse_json(data)
    except ValueError as error:
        raise AdapterFileError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise AdapterFileError(f"{path} must hold a JSON object, found {type(values).__name__}.")
    return values


@contextmanager
def _open_safetensors(path: AnyPath, max_bytes: int | None) -> Iterator[Any]:
    """Open a safetensors file; the library checks its header, and this function some sizes that it leaves unchecked."""
    with open_regular(path, "a safetensors file", max_bytes) as (opened, _):
        header_bytes = int.from_bytes(opened.read(8), "little")
    broken = f"{path} is not a readable safetensors file (truncated or corrupt?)"
    if header_bytes > MAX_HEADER_BYTES:
        raise AdapterFileError(f"{broken}: its header has {header_bytes} bytes, more than {MAX_HEADER_BYTES}.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            count = len(file.keys())
            if count > _MAX_TENSORS:
                raise ValueError(f"it has {count} tensors, more than {_MAX_TENSORS}")
            yield file
    # Errors of the block, too: reading a part of a corrupt file raises there.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{broken}: {error}.") from error


def read_layout(path: AnyPath, max_bytes: int | None = None) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the shapes and dtypes in a safetensors file's header, and the metadata; no tensor is read."""
    layout: dict[str, TensorInfo] = {}
    with _open_safetensors(path, max_bytes) as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            part = file.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            if dtype not in _DTYPES or len(shape) > _MAX_DIMENSIONS:
                raise ValueError(
                    f"{name[:200]!r} has the dtype {dtype} and {len(shape)} dimensions, expected one of "
                    f"{', '.join(_DTYPES)} and at most {_MAX_DIMENSIONS}"
                )
            layout[name] = TensorInfo(shape, _DTYPES[dtype])
        return layout, dict(file.metadata() or {})


def read_safetensors(path: AnyPath, max_bytes: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file, on the CPU; NaN and infinity are refused."""
    with _open_safetensors(path, max_bytes) as file:
        # Cloned, because the file is mapped: a change on disk must not reach the tensors.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = dict(file.metadata() or {})
    check_finite(tensors, str(path))
    return tensors, metadata


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse tensors that hold NaN, infinity, numbers beyond float32, or a bool other than 0 and 1.

    ``where`` they are from is named in the error.
    """
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    if bad:
        raise AdapterFileError(f"{where}: {bad[0][:200]!r} holds NaN or infinity ({len(bad)} tensors do).")
    odd = [name for name, value in tensors.items() if value.dtype == torch.bool and not _is_truth(value)]
    if odd:
        raise AdapterFileError(f"{where}: {odd[0][:200]!r} is bool, but holds bytes other than 0 and 1.")


def _is_finite(value: Tensor) -> bool:
    # Cast, because isfinite does not take float8, and float64 may hold numbers that are infinite in float32.
    return bool(torch.isfinite(value.float() if value.element_size() in (1, 8) else value).all())


def _is_truth(value: Tensor) -> bool:
    return bool((value.view(torch.uint8) <= 1).all())
