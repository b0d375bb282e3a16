from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cells import (
    CELLS,
    Cell,
    CellResult,
    CellSettings,
    DataSource,
    backbone_digest,
    cell_digest,
    data_digest,
    stored_result,
    with_generator,
)

from cramer_peft.errors import DataError
from cramer_peft.recsys.training.generator_training import BackboneOptions

CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "paper's gate, our loss", 3)


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


def test_names_are_plain_and_distinct() -> None:
    cells = [
        CELL,
        replace(CELL, method="papers gate, our loss"),
        replace(CELL, seed=4),
        replace(CELL, variant="rank 1"),
    ]
    names = {cell.name for cell in cells}
    assert len(names) == len(cells)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") for name in names)
    assert replace(CELL, source=DataSource("/somewhere/films")).name == CELL.name


@pytest.mark.parametrize(
    "other",
    [
        replace(CELL, seed=4),
        with_generator(CELL, steps=7),
        replace(CELL, settings=CellSettings(config={"rank": 1})),
        replace(CELL, settings=CellSettings(hold_out="users")),
        replace(CELL, settings=CellSettings(encoder="hashing")),
        replace(CELL, settings=CellSettings(backbone=BackboneOptions(epochs=1))),
        replace(CELL, source=DataSource("films", attribute_column="tags")),
    ],
)
def test_the_digest_knows_what_determines_a_result(other: Cell) -> None:
    assert cell_digest(other, "data") != cell_digest(CELL, "data")
    assert cell_digest(CELL, "other data") != cell_digest(CELL, "data")
    assert cell_digest(CELL, "data", {"rank": 4}) != cell_digest(CELL, "data", {"rank": 8})
    assert cell_digest(replace(CELL, source=DataSource("/elsewhere/films")), "data") == cell_digest(CELL, "data")


def test_cells_that_share_a_backbone_agree_on_it() -> None:
    others = [with_generator(CELL, steps=7), replace(CELL, method="ours"), replace(CELL, variant="rank 1")]
    assert {backbone_digest(cell, "data") for cell in others} == {backbone_digest(CELL, "data")}
    assert backbone_digest(replace(CELL, seed=4), "data") != backbone_digest(CELL, "data")


def test_the_digest_of_data_is_that_of_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a.item").write_text("x")
    first = data_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    assert data_digest(tmp_path) == first
    (tmp_path / "a.item").write_text("y")
    assert data_digest(tmp_path) != first
