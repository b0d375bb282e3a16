"""A cell's result and the two files that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from benchmark.cells import Cell
from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.storage import read_json, write_json, write_safetensors

Status = Literal["done", "empty", "failed"]

CELLS = "cells"  # folder of the results


@dataclass(frozen=True, eq=False)
class CellResult:
    """The result of a cell.

    Attributes:
        cell: Its identity.
        digest: Digest of what determined it.
        status: "done"; "empty": it cannot be run here, for example because weights are missing; "failed": an error.
        reason: Why it is not done.
        figures: The summary in the JSON file: users, trainable, seconds, tracks, strength …
        values: "track/metric" → float32 (users,), NaN for a user who does not count.
    """

    cell: Mapping[str, Any]
    digest: str
    status: Status = "done"
    reason: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the contents of the JSON file."""
        head = {"cell": dict(self.cell), "digest": self.digest, "status": self.status, "reason": self.reason}
        return {**head, **self.figures}

    def save(self, output: Path, name: str) -> None:
        """Write ``cells/NAME.safetensors``, then ``cells/NAME.json``, each whole or not at all."""
        folder = output / CELLS
        folder.mkdir(parents=True, exist_ok=True)
        values = {key: value.float() for key, value in self.values.items()}
        write_safetensors(folder / f"{name}.safetensors", values, {"digest": self.digest})
        write_json(folder / f"{name}.json", self.document())

    @classmethod
    def load(cls, output: Path, name: str) -> CellResult:
        """Read the files that :meth:`save` wrote.

        Raises:
            DataError: If a file is missing or cannot be read.
        """
        path = output / CELLS / f"{name}.json"
        try:
            document = read_json(path)
            head = {key: document.pop(key) for key in ("cell", "digest", "status", "reason")}
            values = load_file(path.with_suffix(".safetensors"))
        except (AdapterFileError, KeyError, OSError, SafetensorError) as error:
            raise DataError(f"{path}: no readable result of a cell ({error}). Run it again.") from error
        return cls(**head, figures=document, values=values)


def stored_result(output: Path, cell: Cell, digest: str) -> CellResult | None:
    """Return the cell's finished result, or None if it is missing, out of date, damaged or not done."""
    try:
        found = CellResult.load(output, cell.name)
    except DataError:
        return None
    return found if found.digest == digest and found.status == "done" else None
