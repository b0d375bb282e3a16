"""Folders of encoders: found without the network, and checked for what a file in them would fetch or run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramer_peft.errors import EncoderError

CONFIG_FILE = "config.json"
_INDEX_FILE = "model.safetensors.index.json"
_ADAPTER_FILE = "adapter_config.json"
# What torch computes itself; any other name can be a kernel, which is code on the hub.
_ATTENTION = (None, "eager", "sdpa", "flex_attention")
_EXPERTS = (None, "eager", "grouped_mm", "batched_mm")
_NEVER = ("use_kernels", "kernel_config", "transformers_weights", "distributed_config", "quantization_config")
_LARGEST = 16 << 20


def local_folder(name: str, revision: str | None, file: str = CONFIG_FILE) -> Path:
    """Return the folder of a model, which is ``name`` itself or lies in the hub's cache; the network is not used.

    huggingface_hub's own ``local_files_only`` is not enough: it may look up other addresses on the way.

    Args:
        name: A folder, or a name on the hub.
        revision: Revision on the hub.
        file: A file that the folder has.

    Raises:
        EncoderError: If there is no such folder.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except (OSError, ValueError):  # it cannot be a name on the hub
        found = None
    if not isinstance(found, str):
        raise EncoderError(
            f"cannot load the request encoder {name!r}: it is neither a folder nor in the hub's cache on this machine. "
            "Give a folder, or a hub name with encoder_options={'local_files_only': False}, which downloads it."
        )
    return Path(found).parent


def check_model_folder(folder: Path, name: str) -> None:
    """Refuse a folder whose files would make transformers fetch or run something, or read a file elsewhere.

    Args:
        folder: The folder of a transformers model.
        name: The encoder's name or path, for the message.

    Raises:
        EncoderError: If a field or a file does; it is named.
    """
    if (folder / _ADAPTER_FILE).exists():
        raise EncoderError(
            f"{name!r}: {folder / _ADAPTER_FILE} names another model to load. Merge the adapter into its model, and "
            "save that."
        )
    for path in (folder / CONFIG_FILE, *sorted(folder.glob("sentence_*_config.json"))):
        if path.exists():
            check_model_config(_read(path, name), f"{name!r}: {path}")
    index = folder / _INDEX_FILE
    if index.exists():
        values = _read(index, name)
        parts = values.get("weight_map") if isinstance(values, dict) else None
        wrong = [part for part in parts.values() if not _is_file_name(part)] if isinstance(parts, dict) else [parts]
        if wrong:
            raise EncoderError(
                f"{name!r}: {index} names the file {wrong[0]!r:.200}, which is not one of its own folder."
            )


def check_model_config(values: Any, where: str) -> None:
    """Refuse fields of a model's configuration that would fetch or run something.

    Args:
        values: The JSON values.
        where: Where they are from, for the message.

    Raises:
        EncoderError: If there is such a field; it is named.
    """
    for key, value in _fields(values):
        if key in _NEVER and value:
            problem = "expected none"
        elif key.endswith("attn_implementation") and not _among(value, _ATTENTION):
            problem = f"expected one of {', '.join(map(str, _ATTENTION[1:]))}, or none"
        elif key.endswith("experts_implementation") and not _among(value, _EXPERTS):
            problem = f"expected one of {', '.join(map(str, _EXPERTS[1:]))}, or none"
        else:
            continue
        raise EncoderError(
            f"{where}: {key} is {value!r:.200}, {problem}: nothing is fetched or run because a file says so. If you "
            "trust it, load the model yourself and wrap it in an encoder of your own."
        )


def _among(value: Any, known: tuple[str | None, ...]) -> bool:
    return all(item in known for item in (value.values() if isinstance(value, dict) else [value]))


def _fields(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield all fields of JSON objects, however deep."""
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from value.items()
        if isinstance(value, dict | list):
            stack.extend(value.values() if isinstance(value, dict) else value)


def _is_file_name(part: Any) -> bool:
    return isinstance(part, str) and Path(part).name == part and "\\" not in part and part.endswith(".safetensors")


def _read(path: Path, name: str) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{name!r}: {path} is not readable ({error}). Save the model again.") from error
