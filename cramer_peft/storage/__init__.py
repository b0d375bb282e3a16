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
)

__all__ = [
    "TensorInfo",
    "atomic_file",
    "check_inside",
    "open_regular",
    "parse_json",
    "read_json",
    "read_layout",
    "read_safetensors",
    "write_bytes",
    "write_json",
    "write_safetensors",
]
