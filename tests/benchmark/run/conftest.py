"""Cells of a small data set, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.run.scheduler import plan_jobs, run_jobs

from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions


@pytest.fixture(scope="session")
def settings() -> CellSettings:
    """Short trainings with the hashing encoder."""
    return CellSettings(
        generator=GeneratorOptions(steps=2, batch_size=4),
        backbone=BackboneOptions(epochs=1, batch_size=16, max_length=8),
        encoder="hashing",
    )


@pytest.fixture
def cells(folder: Path, settings: CellSettings) -> list[Cell]:
    """The frozen model, a filter and ours."""
    source = DataSource(str(folder))
    names = ("frozen", "parsed filter", "ours")
    return [Cell(source, "leave-one-out", "sasrec", name, 0, None, settings) for name in names]


@pytest.fixture(scope="session")
def run() -> Callable[..., list[tuple[str, str]]]:
    """Plans cells and runs what is not stored; gives each job's label and status."""

    def run_cells(cells: list[Cell], output: Path, **options: Any) -> list[tuple[str, str]]:
        jobs = plan_jobs(cells, output)
        return [(outcome.job.label, outcome.status) for outcome in run_jobs(jobs, output, **options)]

    return run_cells
