from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark.__main__ import benchmark
from benchmark.cells import CellSettings, DataSource
from benchmark.console import make_app
from benchmark.plan.planner import PlanOptions
from benchmark.run_benchmark import run_benchmark
from typer.testing import CliRunner

from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")


SETTINGS = CellSettings(
    generator=GeneratorOptions(steps=2, batch_size=4),
    backbone=BackboneOptions(epochs=1, batch_size=16, max_length=8),
    encoder="hashing",
)


def options(folder: Path, **changes: Any) -> PlanOptions:
    return PlanOptions(
        sources=(DataSource(str(folder)),),
        methods=("frozen", "parsed filter"),
        seeds=(0,),
        settings=SETTINGS,
        **changes,
    )


def test_a_run_reports(folder: Path, tmp_path: Path) -> None:
    results = run_benchmark(options(folder), tmp_path)
    assert [result.status for result in results] == ["done", "done"]
    document = json.loads((tmp_path / "results.json").read_text())
    assert {group["method"] for group in document["groups"]} == {"frozen", "parsed filter"}
    text = (tmp_path / "results.md").read_text()
    assert "| parsed filter |" in text
    assert str(folder.parent) not in text + (tmp_path / "results.json").read_text()


def test_a_dry_run_runs_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(folder), "--output", str(tmp_path / "out"), "--dry-run", "--method", "ours"]
    result = CliRunner().invoke(make_app(benchmark), arguments)
    assert result.exit_code == 0, result.output
    assert "Estimated cost" in result.output
    assert not (tmp_path / "out").exists()
