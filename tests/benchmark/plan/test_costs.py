from __future__ import annotations

from dataclasses import replace

from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.data import DataSize
from benchmark.plan.costs import Timing, estimate_backbone, estimate_cell, refined

SMALL, LARGE = DataSize(100, 50, 1000), DataSize(100, 5000, 1000)

CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "ours", 0)


def test_estimates_grow_with_what_costs() -> None:
    assert (
        estimate_cell(CELL, LARGE) > estimate_cell(CELL, SMALL) > estimate_cell(replace(CELL, method="frozen"), SMALL)
    )
    fewer = replace(CELL, settings=CellSettings(max_users=10))
    assert estimate_cell(fewer, LARGE) < estimate_cell(CELL, LARGE)
    assert estimate_backbone(CELL, LARGE) > estimate_backbone(CELL, SMALL)


def test_estimates_learn_from_what_was_measured() -> None:
    timings = [
        Timing("films", "ours", 10, 30),
        Timing("films", "frozen", 10, 20),
        Timing("films", "film", 10, 20),
        Timing("games", "ours", 10, 5),
    ]
    assert refined("films", "ours", 10, timings) == 30
    assert refined("films", "lora", 10, timings) == 20
    assert refined("books", "lora", 10, timings) == 20
    assert refined("films", "ours", 10, []) == 10
