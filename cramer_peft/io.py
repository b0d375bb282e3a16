"""Reading and writing files: atomic writes, strict reads, JSON and safetensors only."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cramer_peft.errors import AdapterFileError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_MAX_JSON_BYTES = 16 * 2**20


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterFileError: If the file is missing, too large, or not a JSON object in UTF-8.
    """
    if not path.is_file():
        raise AdapterFileError(f"{path} does not exist. Expected a file written by save_pretrained.")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise AdapterFileError(f"{path} is larger than {_MAX_JSON_BYTES} bytes: not a file of ours.")
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise AdapterFileError(f"{path} must hold a JSON object, found {type(values).__name__}.")
    return values


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata, atomically."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, metadata={"format": "pt", **metadata}))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file, on the CPU.

    Raises:
        AdapterFileError: If the file is missing, truncated or otherwise not safetensors, or a tensor
            holds NaN or infinity.
    """
    if not path.is_file():
        raise AdapterFileError(f"{path} does not exist. Expected a safetensors file.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            # Cloned, because the file is mapped: replacing it on disk must not reach the tensors.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise AdapterFileError(
            f"{path} is not a readable safetensors file (truncated or corrupt?): {error}."
        ) from error
    check_finite(tensors, str(path))
    return tensors, metadata


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: Tensors by name; those of whole numbers pass.
        where: What they are from, for the message.

    Raises:
        AdapterFileError: If one does.
    """
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not _is_finite(value)]
    if bad:
        raise AdapterFileError(f"{where}: {bad[0]!r} holds NaN or infinity ({len(bad)} tensors do).")


def _is_finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value.float() if value.element_size() == 1 else value).all())  # not there for float8


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
