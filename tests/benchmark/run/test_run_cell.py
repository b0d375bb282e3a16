from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cells import Cell, CellSettings
from benchmark.data import load_data
from benchmark.methods import METHODS
from benchmark.run.backbones import prepare_backbone
from benchmark.run.run_cell import digest_of, task_and_setting
from benchmark.run.scheduler import load_results, plan_jobs

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec

pytest.importorskip("accelerate")


Run = Callable[..., list[tuple[str, str]]]


def test_a_result_with_other_masks_by_default_is_out_of_date(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [cells[0], cells[-1], replace(cells[-1], method="paper's form")]
    data = load_data(kinds[0].source, "leave-one-out")

    def digests() -> list[str]:
        return [digest_of(cell, data) for cell in kinds]

    frozen, ours, paper = digests()
    monkeypatch.delattr(SASRec, "expands_positions")  # then config_for masks what is inside
    assert [found == before for found, before in zip(digests(), (frozen, ours, paper), strict=True)] == [1, 0, 1]
    monkeypatch.setattr(SASRec, "default_targets", ["dense"])
    assert [found == before for found, before in zip(digests(), (frozen, ours, paper), strict=True)] == [1, 0, 0]


def test_held_out_attributes_and_users_are_kept_from_training(
    cells: list[Cell], tmp_path: Path, settings: CellSettings
) -> None:
    data = load_data(cells[0].source, "leave-one-out")
    prepare_backbone(cells[0], tmp_path)
    backbone = type("Backbone", (), {"max_length": 8})()
    hidden = replace(cells[2], settings=replace(settings, hold_out="attributes"))
    task, setting = task_and_setting(hidden, data, backbone, METHODS["ours"])
    assert setting.unseen_attributes is not None
    assert task.options.attributes is not None
    assert {*setting.unseen_attributes, *task.options.attributes} == {*data.catalogue.attributes}
    assert not {*setting.unseen_attributes} & {*task.options.attributes}
    fewer = replace(cells[2], settings=replace(settings, hold_out="users"))
    task, setting = task_and_setting(fewer, data, backbone, METHODS["ours"])
    assert setting.unseen_users is not None
    kept = [data.split.train[user] for user in (~setting.unseen_users).nonzero().flatten().tolist()]
    assert len(kept) == len(task.split.train) == 24
    assert all(torch.equal(*pair) for pair in zip(kept, task.split.train, strict=True))
    assert len(setting.targets) == 30


@pytest.mark.parametrize("variant", ["unseen attributes", "unseen users"])
def test_held_out_cells_run(cells: list[Cell], tmp_path: Path, variant: str, run: Run, settings: CellSettings) -> None:
    hold_out: Any = variant.split()[1]
    cell = replace(cells[2], variant=variant, settings=replace(settings, hold_out=hold_out))
    run([cell], tmp_path)
    (found,) = load_results([cell], tmp_path)
    assert any(track.startswith(variant) for track in found.figures["tracks"])


def test_by_time_new_users_are_told_apart(cells: list[Cell], tmp_path: Path) -> None:
    cell = replace(cells[0], protocol="temporal")
    with pytest.raises(DataError, match="positions in each user's sequence"):
        load_data(cell.source, "temporal")  # the tales have positions for times
    (jobs,) = [plan_jobs(cells[:1], tmp_path)]
    assert len(jobs) == 2


def test_without_weights_the_cell_is_empty(cells: list[Cell], tmp_path: Path, run: Run) -> None:
    reranker = replace(cells[0], method="reranker")
    assert run([reranker], tmp_path)[1:] == [("reranker", "empty")]
    (found,) = load_results([reranker], tmp_path)
    assert "set language_model to a name or a folder" in str(found.reason)
    assert run([reranker], tmp_path) == [("reranker", "empty")]


def test_what_needs_the_inside_of_another_backbone_is_empty(cells: list[Cell], tmp_path: Path, run: Run) -> None:
    film = replace(cells[0], backbone="gru4rec", method="film")
    ours = replace(film, method="ours")
    assert run([film, ours], tmp_path) == [("backbone gru4rec", "done"), ("film", "empty"), ("ours", "done")]
    found = {result.cell["method"]: result for result in load_results([film, ours], tmp_path)}
    assert "needs the inside of bert4rec or sasrec: gru4rec has another" in str(found["film"].reason)
    assert found["ours"].status == "done"
