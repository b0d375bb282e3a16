"""Safe reading and atomic writing of files."""

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
from cramer_peft.storage.hub import find_folder, push_folder
from cramer_peft.storage.model_card import MARKER, write_model_card
from cramer_peft.storage.stored_config import check_encoder_options

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
