"""Configurations from files: strict reading, and checks against files from strangers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from cramer_peft.config import RequestMaskConfig, RequestMaskPeftType
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, EncoderError
from cramer_peft.injection.plan import own_modules
from cramer_peft.masks.config_values import LARGEST

_MESSAGE_LENGTH = 1000
_PATTERN_LENGTH = 2**20
_LIST_LENGTH = 1000

# PEFT's fields that do not concern the masks, with their types; other tools edit them in place.
_PEFT_FIELDS: dict[str, tuple[type, ...]] = {
    "auto_mapping": (dict, type(None)),
    "base_model_name_or_path": (str, type(None)),
    "inference_mode": (bool,),
    "peft_version": (str, type(None)),
    "revision": (str, type(None)),
    "task_type": (str, type(None)),
}


def short(text: object, limit: int = _MESSAGE_LENGTH) -> str:
    """Return a text for a message, cut to a length that a file cannot exceed."""
    message = str(text)
    return message if len(message) <= limit else f"{message[:limit]} … ({len(message)} characters)"


def parse_config(path: Path, values: dict[str, Any]) -> RequestMaskConfig:
    """Return the configuration of the JSON values that ``path`` holds."""
    if values.get("peft_type") != RequestMaskPeftType.REQUEST_MASK.value:
        found = short(repr(values.get("peft_type")))
        raise AdapterFileError(f"{path}: expected peft_type 'REQUEST_MASK', found {found}.")
    known = {field.name for field in dataclasses.fields(RequestMaskConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise AdapterFileError(f"{path}: unknown fields {short(unknown)}; was it written by a newer version?")
    for name, types in _PEFT_FIELDS.items():
        if name in values and not isinstance(values[name], types):
            found = type(values[name]).__name__
            raise AdapterFileError(f"{path}: {name} must be {types[0].__name__} or null, found {found}.")
    _check_patterns(path, values)
    _check_numbers(path, values)
    try:
        config = RequestMaskConfig(**values)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise AdapterFileError(f"{path}: {short(error)}") from error
    missing = [name for name in ("request_dim", "masked_modules", "target_modules") if getattr(config, name) is None]
    if missing:
        raise AdapterFileError(f"{path}: {missing} must be set in a saved adapter.")
    return config


def _check_patterns(path: Path, values: dict[str, Any]) -> None:
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        for pattern in _texts(values.get(name)):
            if len(pattern) > _PATTERN_LENGTH:
                raise AdapterFileError(f"{path}: {name} has {len(pattern)} characters, at most {_PATTERN_LENGTH} fit.")
    kept = values.get("modules_to_save")
    # PEFT uses these as regular expressions on every module's name.
    if isinstance(kept, list) and (
        len(kept) > _LIST_LENGTH or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in kept)
    ):
        raise AdapterFileError(
            f"{path}: modules_to_save must be at most {_LIST_LENGTH} module names, found {short(kept, 200)}."
        )


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    for name in ("strength", "default_request"):
        for number in values[name] if isinstance(values.get(name), list) else [values.get(name)]:
            if isinstance(number, (int, float)) and abs(number) > LARGEST:
                raise AdapterFileError(f"{path}: {name} holds {number!r}, larger than float32 can hold.")


def _texts(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def config_digest(values: dict[str, Any]) -> str:
    """Return a digest of a configuration's JSON values, without the fields that do not concern the masks."""
    kept = {name: value for name, value in values.items() if name not in _PEFT_FIELDS}
    return "sha256:" + hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- matching


def match_by_list(config: RequestMaskConfig, model: nn.Module) -> None:
    """Replace the patterns of a stored configuration by its own list of modules if they could run for ever.

    A regular expression with a repeat or a group can take exponential time, so none from a file is run.
    """
    modules = {name for name, _ in own_modules(model)}
    assert config.masked_modules is not None
    owners = {entry: _owner(entry, modules) for entry in config.masked_modules}
    missing = [entry for entry, owner in owners.items() if owner is None]
    if missing:
        raise BaseModelMismatchError(
            "the adapter was made for other modules than this model has: missing "
            f"{short(', '.join(missing[:20]))} ({len(missing)} are)."
        )
    if _is_simple(config):
        return
    names = sorted({owner for entry, owner in owners.items() if owner is not None and ":" not in entry})
    config.target_modules = "|".join(re.escape(name) for name in names) or DUMMY_TARGET_MODULES
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def _owner(entry: str, modules: set[str]) -> str | None:
    """Return the module of an entry of the layout: the entry names it, or one of its parts."""
    if ":" in entry:  # the output of a module's method
        module = entry.rpartition(":")[0]
        return module if module in modules else None
    parent = entry.rpartition(".")[0]
    return entry if entry in modules else parent if parent in modules else None


def _is_simple(config: RequestMaskConfig) -> bool:
    """Return True if matching takes time in proportion to the patterns' length."""
    for patterns in (config.target_modules, config.exclude_modules, config.layers_to_transform):
        if isinstance(patterns, list) and len(patterns) > _LIST_LENGTH:
            return False
    expressions = [value for value in (config.target_modules, config.exclude_modules) if isinstance(value, str)]
    expressions += _texts(config.layers_pattern)
    return not any(set(expression) & set("*+?{(") for expression in expressions)


# ---------------------------------------------------------------- the encoder


def check_encoder_options(config: RequestMaskConfig) -> None:
    """Refuse options from a file that would make an encoder use the network, or read a path."""
    for key, value in _options(config.encoder_options or {}):
        if key == "local_files_only" and value is not True:
            problem = "lets it use the network"
        elif isinstance(value, str) and _is_place(key, value):
            problem = "names a place outside the adapter's folder"
        else:
            continue
        raise EncoderError(
            f"the adapter's request encoder {config.encoder!r} has the option {short(key, 80)!r} = "
            f"{short(repr(value), 200)}, which {problem}. This is not done just because a file says so: if you "
            "trust it, make the encoder yourself (for example by cramer_peft.encoders.make_encoder) and pass it as "
            "encoder=…"
        )


def _options(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    children: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = ((key, item) for item in value)
    else:
        yield key, value
        return
    for name, child in children:
        yield from _options(child, name)


def _is_place(key: str, value: str) -> bool:
    if re.match(r"[~./\\]|[A-Za-z]:[/\\]|[A-Za-z][\w+.-]*://", value) or ".." in value or "\\" in value:
        return True
    # "owner/name" may be a name on the hub, and a folder that happens to be here.
    try:
        return "path" in key.lower() and Path(value.replace("\0", "")).exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return True
