"""Real language and transfer as cells of the benchmark, on made-up data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cell_files import CELLS, CellResult
from benchmark.cells import CellSettings, DataSource, RealLanguage, Transfer
from benchmark.data import load_data
from benchmark.plan.matrices import MATRICES
from benchmark.plan.planner import PlanOptions, plan_cells
from benchmark.report.study_tables import study_reports
from benchmark.run.run_cell import digest_of
from benchmark.run.scheduler import plan_jobs, seconds_of
from benchmark.run_benchmark import run_benchmark

from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")

SETTINGS = CellSettings(
    generator=GeneratorOptions(batch_size=4),
    backbone=BackboneOptions(epochs=1, batch_size=16, max_length=8),
    encoder="hashing",
)
KINDS = ("Action", "Comedy", "Puzzle")


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows in each of 20 dialogues, and one without a history."""
    path = tmp_path_factory.mktemp("dialogues") / "requests.jsonl"
    genres = ("Action", "Comedy", "Drama", "Horror")
    titles = [f"{genres[item % 4]} tale {item}" for item in range(40)]
    rows = []
    for number in range(20):
        for row in range(2):
            target = (7 * number + row) % 40
            history = [titles[(target + 1) % 40], titles[(target + 2) % 40]] if number != 3 else []
            text = f"I liked [movie] a lot. Please give me some {genres[target % 4]}"
            rows.append({"dialogue": f"d{number}", "history": history, "request": text, "target": titles[target]})
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second domain of 24 items, of which one kind is new."""
    pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("other") / "games"
    path.mkdir()
    items = [f"g{item}\tgame {item}\t{KINDS[item % 3]}" for item in range(24)]
    (path / "games.item").write_text("\n".join(["item_id:token\ttitle:token_seq\tgenres:token_seq", *items]) + "\n")
    seen = [f"u{user}\tg{(user % 3 + 3 * step) % 24}\t{step}" for user in range(30) for step in range(6)]
    (path / "games.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *seen]) + "\n")
    return path


def options(matrix: str, folder: Path, **changes: Any) -> PlanOptions:
    given = {"sources": (DataSource(str(folder)),), "seeds": (0, 1), "steps": 2, "settings": SETTINGS, **changes}
    return PlanOptions(matrix, **given)


def test_real_language_is_measured_resumed_and_reported(folder: Path, dialogues: Path, tmp_path: Path) -> None:
    asked = options("real-language", folder, dialogues=str(dialogues))
    results = run_benchmark(asked, tmp_path)
    assert [(result.status, result.reason) for result in results] == [("done", None)] * 8
    ours = next(result for result in results if result.cell["method"] == "ours")
    assert ours.figures["without_history"] == 2
    assert ours.figures["users"] == 2 * ours.figures["dialogues"]
    assert set(ours.figures["tracks"]) == {"no request", "request", "shuffled requests"}
    assert ours.figures["chosen"]["candidate"].startswith("strength")
    fusion = next(result for result in results if result.cell["method"] == "text fusion")
    assert fusion.figures["chosen"]["candidate"].startswith("weight")
    document = json.loads((tmp_path / "results.json").read_text())
    (study,) = document["studies"]
    assert document["groups"] == []
    assert study["study"] == "real language, validation"
    assert set(study["differences"]) >= {"ours - no request", "ours - text fusion", "ours - ours, shuffled requests"}
    assert any("real language" in aim["name"] for aim in document["aims"])
    text = (tmp_path / "results.md").read_text()
    assert "| ours, shuffled requests |" in text
    assert str(dialogues.parent) not in text + (tmp_path / "results.json").read_text()
    assert all(job.stored for job in plan_jobs(plan_cells(asked), tmp_path))
    final = plan_cells(replace(asked, stage="test", methods=("frozen",), seeds=(0,)))
    assert [job.stored for job in plan_jobs(final, tmp_path)] == [True, False]  # the backbone is shared
    assert len(list((tmp_path / CELLS).glob("*.json"))) == 8


def test_transfer_is_measured_resumed_and_reported(folder: Path, games: Path, tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    own = replace(SETTINGS, encoder=None)
    asked = options("transfer", folder, target=DataSource(str(games)), settings=own, seeds=(0,))
    results = run_benchmark(asked, tmp_path)
    assert [(result.status, result.reason) for result in results] == [("done", None)]
    found = results[0].figures
    assert (found["shared"], found["new"]) == (["Action", "Comedy"], ["Puzzle"])
    assert {key.split(": ")[0] for key in found["tracks"]} == {"zero-shot", "text fusion", "little training"}
    assert {path.name for path in (tmp_path / "backbones").iterdir()} == {
        f"{data.name}__leave-one-out__sasrec__0" for data in (folder, games)
    }
    document = json.loads((tmp_path / "results.json").read_text())
    (study,) = document["studies"]
    names = [row[0] for row in study["rows"]]
    assert names == ["frozen", "zero-shot", "text fusion", "little training"]
    assert {"zero-shot - frozen", "zero-shot - little training"} <= set(study["differences"])
    assert sum("zero-shot" in aim["name"] for aim in document["aims"]) == 2
    assert all(job.stored for job in plan_jobs(plan_cells(asked), tmp_path))


def test_what_a_study_is_made_of_is_in_its_digest(folder: Path, dialogues: Path, games: Path, tmp_path: Path) -> None:
    (cell,) = plan_cells(options("real-language", folder, dialogues=str(dialogues), methods=("ours",), seeds=(0,)))
    other = tmp_path / dialogues.name
    other.write_text("\n".join(dialogues.read_text().split("\n")[2:]))
    data = load_data(cell.source, "leave-one-out")
    plain = replace(cell, study=None)
    digests = [digest_of(changed, data) for changed in (cell, plain, replace(cell, study=RealLanguage(str(other))))]
    assert len(set(digests)) == 3
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(dialogues.read_bytes())
    assert digest_of(replace(cell, study=RealLanguage(str(moved))), data) == digests[0]
    assert cell.name != plain.name
    assert cell.backbone_name == plain.backbone_name
    carried = [Transfer(DataSource(str(games)), full=full) for full in (False, True)]
    assert len({digest_of(replace(cell, study=study), data) for study in carried}) == 2
    with pytest.raises(DataError, match=r"nothing\.jsonl cannot be read"):
        digest_of(replace(cell, study=RealLanguage("nothing.jsonl")), data)


def test_the_plan_says_what_studies_cost(folder: Path, dialogues: Path, games: Path) -> None:
    spoken = plan_cells(options("real-language", folder, dialogues=str(dialogues), seeds=(0,)))
    costs = {cell.method: seconds_of(cell, load_data(cell.source, cell.protocol)) for cell in spoken}
    assert costs["ours"] > costs["frozen"] > 0
    asked = options("transfer", folder, target=DataSource(str(games)), settings=CellSettings(), seeds=(0,))
    (cell,) = plan_cells(asked)
    data = load_data(cell.source, cell.protocol)
    assert isinstance(cell.study, Transfer)
    assert seconds_of(replace(cell, study=replace(cell.study, full=True)), data) > seconds_of(cell, data)


def test_only_what_can_be_carried_is_planned(folder: Path, games: Path) -> None:
    (cell, *_) = plan_cells(options("transfer", folder, target=DataSource(str(games)), settings=CellSettings()))
    assert cell.settings.encoder == "catalogue-text"
    assert [needed.source.name for needed in cell.with_backbones] == [folder.name, games.name]
    assert isinstance(cell.study, Transfer)
    assert cell.study.stage == "validation"
    assert MATRICES["transfer"].data == ("movielens-100k",)


@pytest.mark.parametrize(
    ("matrix", "changes", "message"),
    [
        ("real-language", {}, "set dialogues in --config"),
        ("transfer", {}, "set target in --config"),
        ("others", {"dialogues": "x"}, "dialogues: not an option of the matrix 'others'"),
        ("others", {"stage": "validation"}, "stage: not an option of"),
        ("real-language", {"dialogues": "x", "target": DataSource("y")}, "target: not an option of"),
        ("real-language", {"dialogues": "x", "stage": "all"}, "stage: found 'all'"),
        ("real-language", {"dialogues": "x", "methods": ("oracle filter",)}, "made-up requests only"),
        ("real-language", {"dialogues": "x", "variants": ("unseen users",)}, "holds out"),
        ("transfer", {"target": DataSource("y"), "methods": ("text fusion",)}, "masks to carry over"),
        ("transfer", {"target": DataSource("y")}, "encoder: found 'hashing', expected 'catalogue-text'"),
        (
            "transfer",
            {"target": DataSource("y"), "settings": CellSettings(), "variants": ("masks inside too",)},
            "masks layers inside",
        ),
    ],
)
def test_what_cannot_be_planned_is_told(folder: Path, matrix: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_cells(options(matrix, folder, **changes))


def test_results_of_other_rows_are_refused() -> None:
    cell = {"data": "a", "protocol": "b", "backbone": "c", "study": "transfer", "method": "ours", "variant": None}
    results = [
        CellResult({**cell, "seed": seed}, "", values={"zero-shot: truthful/ndcg": torch.zeros(3 + seed)})
        for seed in (0, 1)
    ]
    with pytest.raises(DataError, match=r"results of \[3, 4\] rows"):
        study_reports(results)
