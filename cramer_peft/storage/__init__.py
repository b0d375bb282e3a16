"""Safe reading and atomic writing of files."""

from importlib import import_module
from typing import TYPE_CHECKING

from cramer_peft.storage.files import (
    TensorInfo,
    atomic_file,
    check_inside,
    open_regular,
    parse_json,
    read_json,
    read_layout,
    read_safetensors,
    write_bytes,
    write_json,
    write_safetensors,
    write_together,
)
from cramer_peft.storage.folders import new_version, write_problem

if TYPE_CHECKING:
    from cramer_peft.storage.hub import find_folder, push_folder
    from cramer_peft.storage.model_card import MARKER, write_model_card
    from cramer_peft.storage.stored_config import check_encoder_options
else:
    _LATE = {
        "check_encoder_options": "stored_config",
        "find_folder": "hub",
        "push_folder": "hub",
        "MARKER": "model_card",
        "write_model_card": "model_card",
    }

    def __getattr__(name):
        """Import what knows configurations when it is first used, because PEFT takes seconds to import."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"cramer_peft.storage.{_LATE[name]}"), name)


__all__ = [
    "MARKER",
    "TensorInfo",
    "atomic_file",
    "check_encoder_options",
    "check_inside",
    "find_folder",
    "new_version",
    "open_regular",
    "parse_json",
    "push_folder",
    "read_json",
    "read_layout",
    "read_safetensors",
    "write_bytes",
    "write_json",
    "write_model_card",
    "write_problem",
    "write_safetensors",
    "write_together",
]
