"""Safe reading and atomic writing of files."""

from cramer_peft.storage.files import (
    atomic_file,
    open_regular,
    parse_json,
    read_json,
    read_safetensors,
    write_bytes,
    write_json,
    write_safetensors,
)

__all__ = [
    "atomic_file",
    "open_regular",
    "parse_json",
    "read_json",
    "read_safetensors",
    "write_bytes",
    "write_json",
    "write_safetensors",
]
