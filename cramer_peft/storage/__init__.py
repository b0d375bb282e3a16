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
    from cramer_peft.storage.stored_config import check_encoder_options
else:

    def __getattr__(name):
        """Import what knows configurations when it is first used, because PEFT takes seconds to import."""
        if name != "check_encoder_options":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module("cramer_peft.storage.stored_config").check_encoder_options


__all__ = [
    "TensorInfo",
    "atomic_file",
    "check_encoder_options",
    "check_inside",
    "new_version",
    "open_regular",
    "parse_json",
    "read_json",
    "read_layout",
    "read_safetensors",
    "write_bytes",
    "write_json",
    "write_problem",
    "write_safetensors",
    "write_together",
]
