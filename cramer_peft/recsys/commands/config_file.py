"""The file of ``--config``: sections of settings for training, checked before anything runs.

``docs/train.md`` documents the sections and their fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import BACKBONES
from cramer_peft.recsys.data.own_data import Columns
from cramer_peft.recsys.reading import read_object
from cramer_peft.recsys.training.generator_training import generator_options
from cramer_peft.recsys.training.recommender_training import DEFAULT_BACKBONE
from cramer_peft.recsys.training.request_batches import GeneratorOptions

_MAX_BYTES = 1 << 20
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object"}


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Settings of both trainings and of the validation after them; ``docs/train.md`` documents them."""

    batch_size: int | None = None
    negatives: int | None = None
    checkpoint_steps: int = 100
    users: int | None = None


_SECTIONS: dict[str, type[Any]] = {
    "columns": Columns,
    "masks": RequestMaskConfig,
    "generator": GeneratorOptions,
    "training": TrainingSettings,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings in a file: the named fields of ``masks`` and ``generator``; ``columns`` is None if it names none."""

    columns: Columns | None = None
    masks: dict[str, Any] = dataclasses.field(default_factory=dict)
    generator: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)

    def generator_options(self, backbone: str | None, steps: int | None) -> GeneratorOptions | None:
        """Return the generator's options for a backbone; ``steps`` replaces the file's. None: the defaults."""
        changes = self.generator if steps is None else {**self.generator, "steps": steps}
        kind = BACKBONES.get(backbone or DEFAULT_BACKBONE)
        return dataclasses.replace(generator_options(kind), **changes) if changes else None


def read_settings(path: Path) -> Settings:
    """Read a JSON object of the sections of ``_SECTIONS``; fields beside the sections belong to "masks"."""
    given = read_object(path, "a JSON object of settings", _MAX_BYTES)
    sections = {name: given.pop(name, {}) for name in _SECTIONS}
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {name}: found {values!r:.60}, expected an object. Correct the file.")
    twice = sorted(given.keys() & sections["masks"].keys())
    if twice:
        raise ConfigError(f'{path}: {twice[0]} stands in the section "masks" and beside it. Remove one.')
    sections["masks"] |= given
    made = {name: _made(path, name, values) for name, values in sections.items()}
    return Settings(
        columns=made["columns"] if sections["columns"] else None,
        masks=sections["masks"],
        generator={name: getattr(made["generator"], name) for name in sections["generator"]},
        training=made["training"],
    )


def _made(path: Path, section: str, values: dict[str, Any]) -> Any:
    """Return an object of the section's class, after a check of names, types and values."""
    kind = _SECTIONS[section]
    hints = get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *_SECTIONS], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path}: {section}: unknown field {name!r}, expected one of {', '.join(known)}.{hint}")
        expected = _expected(hints[name])
        if not _fits(value, hints[name]):
            raise ConfigError(f"{path}: {section}: {name}: found {value!r:.60}, expected {expected}. Correct the file.")
        if kind in (Columns, TrainingSettings) and isinstance(value, int) and value < 1 and name != "min_rating":
            raise ConfigError(f"{path}: {section}: {name}: found {value}, expected 1 or more. Correct the file.")
    try:
        return kind(
            **{name: tuple(value) if name == "attributes" and value else value for name, value in values.items()}
        )
    except (TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{path}: {section}: {error} Correct the file.") from error


def _fits(value: Any, hint: Any) -> bool:
    """Return True if a JSON value is of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _expected(hint: Any) -> str:
    """Return a type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_expected, inner)))
    if origin in (list, tuple):
        return f"a list, each {_expected(inner[0])}"
    return "null" if hint is type(None) else _WORDS.get(origin or hint, "a text")
