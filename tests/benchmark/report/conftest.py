"""Results of cells with made-up values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from benchmark.cell_files import CellResult
from benchmark.cells import Cell, DataSource

NAN = torch.nan


def _result(method: str, seed: int, values: dict[str, list[float]], **changes: Any) -> CellResult:
    cell = Cell(DataSource("films"), "leave-one-out", "sasrec", method, seed)
    figures = {"trainable": 1000, "seconds": {"train": 2.0 + seed, "evaluate": 1.0}, "checks": [], "tracks": {}}
    tensors = {key: torch.tensor(column) for key, column in values.items()}
    return CellResult(cell.identity, "digest", figures=figures, values=tensors, **changes)


def _ours(seed: int, ndcg: list[float]) -> CellResult:
    values = {
        "truthful/ndcg": ndcg,
        "truthful/frozen_ndcg": [0.2, 0.2, 0.2, NAN],
        "for/satisfaction": [0.8, 0.6, 1.0, 0.4],
        "for/frozen_satisfaction": [0.2, 0.2, 0.2, 0.2],
        "for/best_satisfaction": [1.0, 0.8, 1.0, 0.4],
        "for/inside_ndcg": [0.5, NAN, 0.3, NAN],
        "for/frozen_inside_ndcg": [0.5, NAN, 0.5, NAN],
        "blank/overlap": [1.0, 1.0, 1.0, 1.0],
    }
    return _result("ours", seed, values)


@pytest.fixture(scope="session")
def result() -> Callable[..., CellResult]:
    """Makes a result of one cell from its values."""
    return _result


@pytest.fixture
def results() -> list[CellResult]:
    """Two seeds of ours."""
    return [_ours(0, [0.2, 0.4, 0.6, NAN]), _ours(1, [0.6, 0.4, 0.8, NAN])]
