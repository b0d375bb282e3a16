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
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE
from cramer_peft.recsys.folder import ADAPTER_FOLDER
from cramer_peft.recsys.hub import recommender_folder
from cramer_peft.recsys.reading import as_path
from cramer_peft.recsys.scoring.scorer import ListOptions, Scored
from cramer_peft.storage import parse_json

LISTS, BAD = "lists", "bad"  # folders of an output
_PLAN, _TEMPORARY = "_plan.json", "_temporary"


@dataclass(frozen=True)
class Part:
    """Some rows of an input file, and the name of its file of lists."""

    name: str
    file: str
    first: int  # row of the file
    rows: int


def address(place: str | os.PathLike[str]) -> str:
    """Return an absolute path, or an address such as ``s3://bucket/folder`` as it is."""
    return str(place) if "://" in str(place) else str(as_path(place).absolute())


class Output:
    """A folder of files that are there whole or not at all.

    Args:
        place: Its absolute path or address.
    """

    def __init__(self, place: str) -> None:
        self._fs = require("pyarrow.fs", extra="tables")
        try:
            self._files, self.path = self._fs.FileSystem.from_uri(place)
        except (OSError, ValueError) as error:
            raise DataError(f"{place}: {error}. Expected a path, or an address that pyarrow can open.") from error

    def names(self, folder: str = "") -> set[str]:
        """Return the names of what is in the folder, or in one inside; none if it is not there."""
        selector = self._fs.FileSelector(f"{self.path}/{folder}".rstrip("/"), allow_not_found=True)
        return {one.base_name for one in self._files.get_file_info(selector)}

    def read(self, name: str) -> bytes:
        """Return the content of a file inside."""
        with self._files.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file inside, under another name until it is whole."""
        target, temporary = f"{self.path}/{name}", f"{self.path}/{_TEMPORARY}/{secrets.token_hex(8)}"
        for path in (target, temporary):
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(temporary) as file:
            file.write(data)
        self._files.move(temporary, target)

    def write_part(self, part: Part, scored: Scored) -> None:
        """Write the lists of a part and its bad rows; the lists come last, because they tell that the part is done."""
        arrow, parquet = require("pyarrow", extra="tables"), require("pyarrow.parquet", extra="tables")
        for folder, table in ((BAD, scored.bad), (LISTS, scored.lists)):
            if folder == LISTS or len(table):
                parquet.write_table(table, sink := arrow.BufferOutputStream(), compression="zstd")
                self.write(f"{folder}/{part.name}", sink.getvalue().to_pybytes())

    def clear(self) -> None:
        """Remove what processes left that were killed while they wrote."""
        if _TEMPORARY in self.names():
            self._files.delete_dir(f"{self.path}/{_TEMPORARY}")


def open_rows(rows: str) -> Any:
    """Return the ``pyarrow.dataset.Dataset`` of a Parquet file or a folder of them; a DataError if it is none."""
    arrow, datasets = require("pyarrow", extra="tables"), require("pyarrow.dataset", extra="tables")
    try:
        found = datasets.dataset(rows, format="parquet")
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"{rows}: {error}. Expected a Parquet file or a folder of them.") from error
    if not found.files:
        raise DataError(f"{rows}: found no file, expected a Parquet file or a folder of them.")
    return found


def plan_parts(rows: str, options: ListOptions, part_rows: int) -> list[Part]:
    """Return the parts of all rows, ``part_rows`` each; those of a file do not reach into the next.

    Raises:
        ConfigError: If ``part_rows`` is below 1.
        DataError: If there is no file, one cannot be read, or lacks a column.
    """
    if part_rows < 1:
        raise ConfigError(f"part_rows: found {part_rows}, expected 1 or more.")
    arrow = require("pyarrow", extra="tables")
    parts: list[Part] = []
    for fragment in open_rows(rows).get_fragments():
        try:
            options.check_schema(fragment.physical_schema, fragment.path)
            count = fragment.metadata.num_rows
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"{fragment.path}: not a readable Parquet file: {error}.") from error
        for first in range(0, count, part_rows):
            name = f"part-{len(parts):06}.parquet"
            parts.append(Part(name, fragment.path, first, min(part_rows, count - first)))
    return parts


def read_part(files: Any, part: Part, options: ListOptions) -> Any:
    """Return the rows of a part as a table, from pyarrow's file system; only the row groups that hold them are read."""
    arrow, parquet = require("pyarrow", extra="tables"), require("pyarrow.parquet", extra="tables")
    file = parquet.ParquetFile(files.open_input_file(part.file))
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
        skipped, left = skipped - min(skipped, len(batch)), left - len(own)
        if len(own):
            yield own
        if not left:
            return


def parts_to_do(output: Output, parts: list[Part], recommender: Path, options: ListOptions) -> list[Part]:
    """Return the parts that are not written yet, and note in the folder what they are parts of.

    Raises:
        DataError: If the folder holds something else, or parts of other rows, options or another recommender.
    """
    named = {name: getattr(options, name) for name in ("candidates", "exclude")}
    sets = {name: None if ids is None else sorted(map(str, ids)) for name, ids in named.items()}
    plan = {**asdict(options), **sets, "parts": [asdict(part) for part in parts], "recommender": _digest(recommender)}
    there = output.names() - {_TEMPORARY}
    if not there:
        output.write(_PLAN, json.dumps(plan).encode())
    elif _PLAN not in there:
        raise DataError(f"{output.path}: found other files, expected an empty folder or an earlier scoring.")
    elif (earlier := parse_json(output.read(_PLAN))) != plan:
        other = [name for name in plan if not isinstance(earlier, dict) or earlier.get(name) != plan[name]]
        raise DataError(
            f"{output.path}: found parts of another scoring: not the same {', '.join(other)}. Give another folder, or "
            "remove this one."
        )
    done = output.names(LISTS)
    return [part for part in parts if part.name not in done]


def _digest(recommender: Path) -> str:
    """Return a hash of the files that a recommender is loaded from."""
    root = recommender_folder(recommender)
    folders = (root / name for name in (BACKBONE_FOLDER, ADAPTER_FOLDER))
    paths = [root / CATALOGUE_FILE, *(path for folder in folders for path in sorted(folder.rglob("*")))]
    found = hashlib.sha256()
    for path in paths:
        if path.suffix in (".json", ".safetensors") and path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
    return found.hexdigest()
