"""The parts of a scoring: pieces of the input files, and a file of lists for each that is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cramer_peft.errors import ConfigError, DataError, require
from cramer_peft.recsys.reading import as_path
from cramer_peft.recsys.scoring.scorer import ListOptions, Scored
from cramer_peft.storage import parse_json

LISTS, BAD = "lists", "bad"  # folders of an output
_PLAN, _TEMPORARY = "_plan.json", "_temporary"
_ARROW_FILES = (".parquet", ".pq")


@dataclass(frozen=True)
class Part:
    """Some rows of an input file."""

    number: int
    file: str
    first: int  # row of the file
    rows: int

    @property
    def name(self) -> str:
        """Name of its file of lists."""
        return f"part-{self.number:06}.parquet"


class Store:
    """A place for Parquet files: a folder or file of this machine, or an address such as ``s3://bucket/folder``.

    Args:
        place: The path or address.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        fs = require("pyarrow.fs", extra="ray")
        require("pyarrow.parquet", extra="ray")
        self.place = str(place)
        try:
            if "://" in self.place:
                self.files, self.path = fs.FileSystem.from_uri(self.place)
            else:
                self.files, self.path = fs.LocalFileSystem(), as_path(place).absolute().as_posix()
        except (OSError, ValueError) as error:
            raise DataError(f"{self.place}: {error}. Expected a path, or an address that pyarrow can open.") from error
        self._selector, self._types = fs.FileSelector, fs.FileType

    def parquet_files(self) -> list[str]:
        """Return the Parquet files, in the order of their names; those whose names begin with "_" or "." are none."""
        info = self.files.get_file_info(self.path)
        if info.type == self._types.File:
            return [self.path]
        found = self.files.get_file_info(self._selector(self.path, recursive=True, allow_not_found=True))
        names = sorted(one.path for one in found if one.type == self._types.File and one.path.endswith(_ARROW_FILES))
        inside = len(self.path.rstrip("/")) + 1
        names = [name for name in names if not any(part[:1] in "_." for part in name[inside:].split("/"))]
        if not names:
            raise DataError(f"{self.place}: found no Parquet file (.parquet), expected one, or a folder of them.")
        return names

    def open(self, path: str) -> Any:
        """Return a ``pyarrow.parquet.ParquetFile``; raise a DataError if it is none."""
        arrow = require("pyarrow", extra="ray")
        try:
            return require("pyarrow.parquet", extra="ray").ParquetFile(self.files.open_input_file(path))
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"{path}: not a readable Parquet file: {error}.") from error

    def names(self, folder: str) -> set[str]:
        """Return the names of what is in a folder inside; none if it is not there."""
        selector = self._selector(f"{self.path}/{folder}".rstrip("/"), allow_not_found=True)
        return {one.base_name for one in self.files.get_file_info(selector)}

    def read(self, name: str) -> bytes:
        """Return the content of a file inside."""
        with self.files.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file inside, so that a reader sees the old one or the new one, never a part."""
        folder = name.rpartition("/")[0]
        temporary = f"{self.path}/{_TEMPORARY}/{secrets.token_hex(8)}"
        for path in (f"{self.path}/{_TEMPORARY}", f"{self.path}/{folder}".rstrip("/")):
            self.files.create_dir(path, recursive=True)
        with self.files.open_output_stream(temporary) as file:
            file.write(data)
        self.files.move(temporary, f"{self.path}/{name}")

    def clear(self) -> None:
        """Remove what killed processes left."""
        if _TEMPORARY in self.names(""):
            self.files.delete_dir(f"{self.path}/{_TEMPORARY}")


def plan_parts(rows: Store, options: ListOptions, part_rows: int) -> list[Part]:
    """Return the parts of all rows, ``part_rows`` each; those of a file do not reach into the next.

    Raises:
        ConfigError: If ``part_rows`` is below 1.
        DataError: If there is no file, one cannot be read, or lacks a column.
    """
    if part_rows < 1:
        raise ConfigError(f"part_rows: found {part_rows}, expected 1 or more.")
    parts: list[Part] = []
    for path in rows.parquet_files():
        file = rows.open(path)
        options.check_schema(file.schema_arrow, path)
        count = file.metadata.num_rows
        for first in range(0, count, part_rows):
            parts.append(Part(len(parts), path, first, min(part_rows, count - first)))
    return parts


def read_part(rows: Store, part: Part, options: ListOptions) -> Any:
    """Return the rows of a part as a table; only the row groups that hold them are read."""
    arrow, file = require("pyarrow", extra="ray"), rows.open(part.file)
    groups, start, before = [], 0, 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if stop <= part.first:
            before = stop
        elif start < part.first + part.rows:
            groups.append(group)
        start = stop
    batches = file.iter_batches(batch_size=1 << 14, row_groups=groups, columns=options.columns)
    schema = arrow.schema([file.schema_arrow.field(name) for name in options.columns])
    return arrow.Table.from_batches(list(_cut(batches, part.first - before, part.rows)), schema)


def _cut(batches: Iterator[Any], skipped: int, left: int) -> Iterator[Any]:
    for batch in batches:
        own = batch.slice(skipped, left)
        skipped -= min(skipped, len(batch))
        left -= len(own)
        if len(own):
            yield own
        if not left:
            return


def write_part(output: Store, part: Part, scored: Scored) -> None:
    """Write the lists of a part and its bad rows. The lists come last, because they tell that the part is done."""
    for folder, table in ((BAD, scored.bad), (LISTS, scored.lists)):
        if folder == LISTS or len(table):
            output.write(f"{folder}/{part.name}", _parquet_bytes(table))


def _parquet_bytes(table: Any) -> bytes:
    sink = require("pyarrow", extra="ray").BufferOutputStream()
    require("pyarrow.parquet", extra="ray").write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def parts_to_do(output: Store, parts: list[Part], recommender: Path, options: ListOptions) -> list[Part]:
    """Return the parts that are not written yet, and note in the folder what they are parts of.

    Raises:
        DataError: If the folder holds something else, or parts of other rows, options or another recommender.
    """
    plan = {
        "recommender": digest(recommender),
        "parts": [asdict(part) for part in parts],
        **{name: sorted(value) if isinstance(value, set) else value for name, value in asdict(options).items()},
    }
    data = json.dumps(plan, sort_keys=True).encode()
    there = output.names("")
    if _PLAN not in there:
        if there - {_TEMPORARY}:
            raise DataError(f"{output.place}: found other files, expected an empty folder or an earlier scoring.")
        output.write(_PLAN, data)
    elif (found := output.read(_PLAN)) != data:
        earlier = parse_json(found)
        other = ", ".join(name for name in plan if not isinstance(earlier, dict) or earlier.get(name) != plan[name])
        raise DataError(
            f"{output.place}: found parts of another scoring, of which {other or 'something'} is not the same. Give "
            "another folder, or remove this one."
        )
    done = output.names(LISTS)
    return [part for part in parts if part.name not in done]


def digest(recommender: Path) -> str:
    """Return a hash of a recommender's files."""
    found = hashlib.sha256()
    for path in sorted(recommender.glob("**/*")):
        if path.suffix in (".json", ".safetensors") and path.name != "training.json":
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
    return found.hexdigest()
