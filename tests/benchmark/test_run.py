from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark import methods
from benchmark.cells import CELLS, Cell, CellSettings, DataSource, stored_result, with_generator
from benchmark.command import benchmark, run_benchmark
from benchmark.console import make_app
from benchmark.data import load_data
from benchmark.methods import METHODS, Method
from benchmark.plan import Job, PlanOptions
from benchmark.run import (
    digest_of,
    load_results,
    plan_jobs,
    prepare_backbone,
    run_jobs,
    task_and_setting,
)
from typer.testing import CliRunner

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.training.generator_training import BackboneOptions, GeneratorOptions

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

SETTINGS = CellSettings(
    generator=GeneratorOptions(steps=2, batch_size=4),
    backbone=BackboneOptions(epochs=1, batch_size=16, max_length=8),
    encoder="hashing",
)


@pytest.fixture
def cells(folder: Path) -> list[Cell]:
    source = DataSource(str(folder))
    names = ("frozen", "parsed filter", "ours")
    return [Cell(source, "leave-one-out", "sasrec", name, 0, None, SETTINGS) for name in names]


def run(cells: list[Cell], output: Path, **options: Any) -> list[tuple[str, str]]:
    jobs = plan_jobs(cells, output)
    return [(outcome.job.label, outcome.status) for outcome in run_jobs(jobs, output, **options)]


def test_cells_are_run_once(cells: list[Cell], tmp_path: Path) -> None:
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


def test_a_result_with_other_masks_by_default_is_out_of_date(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [cells[0], cells[-1], replace(cells[-1], method="paper's gate")]
    data = load_data(kinds[0].source, "leave-one-out")

    def digests() -> list[str]:
        return [digest_of(cell, data) for cell in kinds]

    frozen, ours, paper = digests()
    monkeypatch.setattr(SASRec, "head_targets", [])
    assert [found == before for found, before in zip(digests(), (frozen, ours, paper), strict=True)] == [1, 0, 1]
    monkeypatch.setattr(SASRec, "default_targets", ["dense"])
    assert [found == before for found, before in zip(digests(), (frozen, ours, paper), strict=True)] == [1, 0, 0]


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(cells: list[Cell], tmp_path: Path) -> None:
    for outcome in run_jobs(plan_jobs(cells, tmp_path), tmp_path):
        if outcome.job.label == "frozen":
            break
    assert run(cells, tmp_path) == [("parsed filter", "done"), ("ours", "done")]


def test_what_was_changed_is_run_again_and_nothing_else(cells: list[Cell], tmp_path: Path) -> None:
    run(cells, tmp_path)
    assert run([*cells[:2], with_generator(cells[2], steps=3)], tmp_path) == [("ours", "done")]


def test_changed_data_are_noticed(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data" / "tales"
    copied.mkdir(parents=True)
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    cell = Cell(DataSource(str(copied)), "leave-one-out", "sasrec", "frozen", 0, None, SETTINGS)
    run([cell], tmp_path / "out")
    item = copied / "tales.item"
    item.write_text(item.read_text().replace("Action tale 0", "Another tale"))
    load_data.cache_clear()
    assert run([cell], tmp_path / "out") == [("backbone sasrec", "done"), ("frozen", "done")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_cell_takes_nothing_along(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    broken = replace(cells[1], settings=replace(SETTINGS, generator=GeneratorOptions(batch_size=0)), method="ours")
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


def test_without_weights_the_cell_is_empty(cells: list[Cell], tmp_path: Path) -> None:
    reranker = replace(cells[0], method="reranker")
    assert run([reranker], tmp_path)[1:] == [("reranker", "empty")]
    (found,) = load_results([reranker], tmp_path)
    assert "--language-model" in str(found.reason)
    assert run([reranker], tmp_path) == [("reranker", "empty")]


def test_what_needs_the_inside_of_another_backbone_is_empty(cells: list[Cell], tmp_path: Path) -> None:
    film = replace(cells[0], backbone="gru4rec", method="film")
    ours = replace(film, method="ours")
    assert run([film, ours], tmp_path) == [("backbone gru4rec", "done"), ("film", "empty"), ("ours", "done")]
    found = {result.cell["method"]: result for result in load_results([film, ours], tmp_path)}
    assert "needs the inside of sasrec: gru4rec has another" in str(found["film"].reason)
    assert found["ours"].status == "done"


def test_a_budget_ends_the_run(cells: list[Cell], tmp_path: Path) -> None:
    assert run(cells, tmp_path, budget_minutes=0) == []


def test_held_out_attributes_and_users_are_kept_from_training(cells: list[Cell], tmp_path: Path) -> None:
    data = load_data(cells[0].source, "leave-one-out")
    prepare_backbone(cells[0], tmp_path)
    backbone = type("Backbone", (), {"max_length": 8})()
    hidden = replace(cells[2], settings=replace(SETTINGS, hold_out="attributes"))
    task, setting = task_and_setting(hidden, data, backbone, METHODS["ours"])
    assert setting.unseen_attributes is not None
    assert task.options.attributes is not None
    assert {*setting.unseen_attributes, *task.options.attributes} == {*data.catalogue.attributes}
    assert not {*setting.unseen_attributes} & {*task.options.attributes}
    fewer = replace(cells[2], settings=replace(SETTINGS, hold_out="users"))
    task, setting = task_and_setting(fewer, data, backbone, METHODS["ours"])
    assert setting.unseen_users is not None
    kept = [data.split.train[user] for user in (~setting.unseen_users).nonzero().flatten().tolist()]
    assert len(kept) == len(task.split.train) == 24
    assert all(torch.equal(*pair) for pair in zip(kept, task.split.train, strict=True))
    assert len(setting.targets) == 30


@pytest.mark.parametrize("variant", ["unseen attributes", "unseen users"])
def test_held_out_cells_run(cells: list[Cell], tmp_path: Path, variant: str) -> None:
    hold_out: Any = variant.split()[1]
    cell = replace(cells[2], variant=variant, settings=replace(SETTINGS, hold_out=hold_out))
    run([cell], tmp_path)
    (found,) = load_results([cell], tmp_path)
    assert any(track.startswith(variant) for track in found.figures["tracks"])


def test_by_time_new_users_are_told_apart(cells: list[Cell], tmp_path: Path) -> None:
    cell = replace(cells[0], protocol="temporal")
    with pytest.raises(DataError, match="positions in each user's sequence"):
        load_data(cell.source, "temporal")  # the tales have positions for times
    (jobs,) = [plan_jobs(cells[:1], tmp_path)]
    assert len(jobs) == 2


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
    assert "What it will cost" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_known_by_its_ranker(name: str) -> None:
    method: Method = METHODS[name]
    if method.make is None or name == "reranker":
        return
    ranker = method.make(methods.mask_config(name, SETTINGS), SETTINGS)
    assert ranker.trainable == 0
