from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cell_files import CELLS, CellResult, stored_result
from benchmark.cells import Cell, DataSource

from cramer_peft.errors import DataError

CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "paper's form, our loss", 3)


def result(digest: str = "a", **changes: Any) -> CellResult:
    values = {"for/satisfaction": torch.tensor([0.5, torch.nan])}
    return CellResult(CELL.identity, digest, figures={"users": 2}, values=values, **changes)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result().save(tmp_path, CELL.name)
    found = stored_result(tmp_path, CELL, "a")
    assert found is not None
    assert found.cell == CELL.identity
    assert found.figures == {"users": 2}
    torch.testing.assert_close(found.values["for/satisfaction"], torch.tensor([0.5, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("status", ["empty", "failed"])
def test_what_is_not_done_is_run_again(tmp_path: Path, status: Any) -> None:
    result(status=status, reason="no weights").save(tmp_path, CELL.name)
    assert stored_result(tmp_path, CELL, "a") is None
    assert CellResult.load(tmp_path, CELL.name).reason == "no weights"


def test_what_something_else_determined_is_run_again(tmp_path: Path) -> None:
    result("old").save(tmp_path, CELL.name)
    assert stored_result(tmp_path, CELL, "new") is None


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_result_is_run_again(tmp_path: Path, suffix: str, damage: str) -> None:
    result().save(tmp_path, CELL.name)
    path = tmp_path / CELLS / f"{CELL.name}.{suffix}"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    assert stored_result(tmp_path, CELL, "a") is None
    with pytest.raises(DataError, match="Run it again"):
        CellResult.load(tmp_path, CELL.name)
