from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmark.cells import Cell, CellSettings, DataSource, backbone_digest, cell_digest, data_digest

from cramer_peft.recsys.training.backbone_training import BackboneOptions


def with_steps(cell: Cell, steps: int) -> Cell:
    return replace(cell, settings=replace(cell.settings, generator=replace(cell.settings.generator, steps=steps)))


CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "paper's form, our loss", 3)


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
        with_steps(CELL, 7),
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
    others = [with_steps(CELL, 7), replace(CELL, method="ours"), replace(CELL, variant="rank 1")]
    assert {backbone_digest(cell, "data") for cell in others} == {backbone_digest(CELL, "data")}
    assert backbone_digest(replace(CELL, seed=4), "data") != backbone_digest(CELL, "data")


def test_the_digest_of_data_is_that_of_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a.item").write_text("x")
    first = data_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    assert data_digest(tmp_path) == first
    (tmp_path / "a.item").write_text("y")
    assert data_digest(tmp_path) != first
