"""Files of a backbone: its configuration as JSON, its weights as safetensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from typing_extensions import Self

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones.weights import WEIGHTS_FILE, check_shapes, read_shapes, refuse_link_out, weight_files
from cramer_peft.recsys.reading import read_file, read_object
from cramer_peft.storage import new_version, write_json, write_safetensors

CONFIG_FILE = "config.json"
MAX_SIZE = 1 << 27  # largest number in a configuration
MAX_LENGTH = 1 << 16  # longest history, to which all are padded
_MAX_CONFIG_BYTES = 1 << 20


class StoredBackbone(nn.Module):
    """A backbone that is no transformers model; ``settings`` are the subclass's arguments, kept in ``config.json``."""

    name: ClassVar[str]
    default_targets: ClassVar[list[str] | str | None] = None
    default_parts: ClassVar[list[str] | None] = None
    expands_positions: ClassVar[bool] = False
    tied: ClassVar[dict[str, str]] = {}  # weight → the weight that it shares; only the latter is stored

    def __init__(self, num_items: int, max_length: int, **settings: float) -> None:
        super().__init__()
        self.settings = {"num_items": num_items, "max_length": max_length, **settings}
        self.register_state_dict_post_hook(_without_tied)
        self.register_load_state_dict_pre_hook(_with_tied)

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return int(self.settings["num_items"])

    @property
    def max_length(self) -> int:
        """Longest history, in items."""
        return int(self.settings["max_length"])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def tie(self) -> None:
        """Replace each weight named in ``tied`` by the parameter that it shares."""
        for name, source in self.tied.items():
            module, _, parameter = name.rpartition(".")
            setattr(self.get_submodule(module), parameter, self.get_parameter(source))

    def fill_buffers(self) -> None:
        """Set the buffers that no file holds, after the weights were loaded."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors``, both or none."""
        with new_version(Path(folder)) as new:
            write_safetensors(new / WEIGHTS_FILE, self.state_dict(), {})
            write_json(new / CONFIG_FILE, {"architectures": [type(self).__name__], **self.settings})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the files that :meth:`save_pretrained` wrote; safe for files from strangers."""
        folder = Path(folder)
        settings = read_config(folder)
        settings.pop("architectures")
        for key, value in settings.items():
            most = MAX_LENGTH if key == "max_length" else MAX_SIZE
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise DataError(f"{folder / CONFIG_FILE}: {key} is {value!r:.100}, expected a number from 0 to {most}.")
        files = weight_files(folder)
        try:
            with torch.device("meta"):  # allocates nothing, whatever sizes a stranger's file names
                model = cls(**settings)
            check_shapes(folder, model, read_shapes(files))
            tensors: dict[str, Tensor] = {}
            for path in files:
                tensors.update(load(read_file(path, "a backbone's weights")))
            model.load_state_dict(tensors, assign=True)
            model.tie()
            model.fill_buffers()
        except (SafetensorError, TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
            raise DataError(f"{folder} holds no readable {cls.__name__}: {error}") from error
        return model


def _without_tied(module: StoredBackbone, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for name in module.tied:
        state.pop(prefix + name, None)


def _with_tied(module: StoredBackbone, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    own = dict(module.named_parameters(remove_duplicate=False))
    for name, source in module.tied.items():
        if name in own and prefix + source in state:
            state[prefix + name] = state[prefix + source]


def read_config(folder: Path) -> dict[str, Any]:
    """Return a backbone's ``config.json``, whose ``architectures`` is a list with one name."""
    path = folder / CONFIG_FILE
    refuse_link_out(folder, path)
    values = read_object(path, "a backbone's configuration", _MAX_CONFIG_BYTES)
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise DataError(f"{path}: architectures is {names!r}, expected a list with the name of one backbone.")
    return values
