from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.cell_files import CELLS, stored_result
from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.data import load_data
from benchmark.plan.budget import Job
from benchmark.run.run_cell import digest_of
from benchmark.run.scheduler import load_results, plan_jobs, run_jobs

pytest.importorskip("accelerate")


Run = Callable[..., list[tuple[str, str]]]


def test_cells_are_run_once(cells: list[Cell], tmp_path: Path, run: Run) -> None:
    assert run(cells, tmp_path) == [
        ("backbone sasrec", "done"),
        ("frozen", "done"),
        ("parsed filter", "done"),
        ("ours", "done"),
    ]
    assert run(cells, tmp_path) == []
    ours = stored_result(tmp_path, cells[-1], digest_of(cells[-1], load_data(cells[-1].source, "leave-one-out")))
    assert ours is not None
    assert ours.figures["trainable"] > 0
    assert ours.figures["strength"]["alphas"][0] == 0
    assert all(check["holds"] for check in ours.figures["checks"] if "shuffled" not in check["name"])
    document = json.loads((tmp_path / CELLS / f"{cells[-1].name}.json").read_text())
    assert document["cell"]["method"] == "ours"
    assert set(document["seconds"]) >= {"train", "evaluate"}
    assert document["trained_on"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    assert str(cells[0].source.data) not in (tmp_path / CELLS / f"{cells[-1].name}.json").read_text()


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(cells: list[Cell], tmp_path: Path, run: Run) -> None:
    for outcome in run_jobs(plan_jobs(cells, tmp_path), tmp_path):
        if outcome.job.label == "frozen":
            break
    assert run(cells, tmp_path) == [("parsed filter", "done"), ("ours", "done")]


def test_what_was_changed_is_run_again_and_nothing_else(
    cells: list[Cell], tmp_path: Path, run: Run, settings: CellSettings
) -> None:
    run(cells, tmp_path)
    changed = replace(cells[2], settings=replace(settings, generator=replace(settings.generator, steps=3)))
    assert run([*cells[:2], changed], tmp_path) == [("ours", "done")]


def test_changed_data_are_noticed(folder: Path, tmp_path: Path, run: Run, settings: CellSettings) -> None:
    copied = tmp_path / "data" / "tales"
    copied.mkdir(parents=True)
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    cell = Cell(DataSource(str(copied)), "leave-one-out", "sasrec", "frozen", 0, None, settings)
    run([cell], tmp_path / "out")
    item = copied / "tales.item"
    item.write_text(item.read_text().replace("Action tale 0", "Another tale"))
    load_data.cache_clear()
    assert run([cell], tmp_path / "out") == [("backbone sasrec", "done"), ("frozen", "done")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_cell_takes_nothing_along(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, run: Run, settings: CellSettings
) -> None:
    broken = replace(cells[1], settings=replace(settings, encoder="no such encoder"), method="ours")
    outcomes = run([broken, cells[0]], tmp_path, workers=workers)
    assert sorted(outcomes) == [("backbone sasrec", "done"), ("frozen", "done"), ("ours", "failed")]
    results = {result.cell["method"]: result for result in load_results([broken, cells[0]], tmp_path)}
    assert results["ours"].status == "failed"
    assert results["ours"].reason


def test_a_backbone_that_fails_fails_its_cells(cells: list[Cell], tmp_path: Path) -> None:
    other = replace(cells[0], backbone="nothing")
    jobs = [Job(other, True, 1), Job(other, False, 1), *plan_jobs(cells[:1], tmp_path)]
    found = {(outcome.job.label, outcome.status): outcome for outcome in run_jobs(jobs, tmp_path)}
    assert ("frozen", "done") in found
    assert "its backbone" in str(found["frozen", "failed"].reason)


def test_a_budget_ends_the_run(cells: list[Cell], tmp_path: Path, run: Run) -> None:
    assert run(cells, tmp_path, budget_minutes=0) == []
