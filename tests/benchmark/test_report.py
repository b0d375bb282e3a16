from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cells import Cell, CellResult, DataSource
from benchmark.report import aims, build_report, group_results, write_report

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.summary import pooled, summarise

NAN = torch.nan


def result(method: str, seed: int, values: dict[str, list[float]], **changes: Any) -> CellResult:
    cell = Cell(DataSource("films"), "leave-one-out", "sasrec", method, seed)
    figures = {"trainable": 1000, "seconds": {"train": 2.0 + seed, "evaluate": 1.0}, "checks": [], "tracks": {}}
    tensors = {key: torch.tensor(column) for key, column in values.items()}
    return CellResult(cell.identity, "digest", figures=figures, values=tensors, **changes)


def ours(seed: int, ndcg: list[float]) -> CellResult:
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
    return result("ours", seed, values)


RESULTS = [ours(0, [0.2, 0.4, 0.6, NAN]), ours(1, [0.6, 0.4, 0.8, NAN])]


def test_seeds_are_averaged_per_user_first() -> None:
    (group,) = group_results(RESULTS)
    assert group.seeds == (0, 1)
    torch.testing.assert_close(group.values["truthful/ndcg"], torch.tensor([0.4, 0.4, 0.7, NAN]), equal_nan=True)
    assert group.tracks["truthful"]["ndcg"]["value"] == pytest.approx(0.5)
    assert group.tracks["truthful"]["users"] == 3
    assert group.tracks["truthful"]["ndcg_ratio"]["value"] == pytest.approx(2.5)
    assert group.tracks["for"]["normalised_gain"]["value"] == pytest.approx((0.7 - 0.2) / (0.8 - 0.2))
    assert group.tracks["for"]["retention"]["value"] == pytest.approx(0.4 / 0.5)
    assert group.seconds == {"train": 2.5, "evaluate": 1.0}


def test_a_gpu_is_named_beside_the_times_it_made() -> None:
    cells = [ours(0, [0.2, 0.4, 0.6, NAN]), ours(1, [0.6, 0.4, 0.8, NAN])]
    for cell, device in zip(cells, ("Fast GPU", "cpu"), strict=True):
        cell.figures["trained_on"] = device
        cell.figures["seconds"]["train_cpu"] = 2.0
    (group,) = group_results(cells)
    assert group.trained_on == ("Fast GPU", "cpu")
    document, text = build_report(cells, "command", 60.0)
    assert document["groups"][0]["trained_on"] == ["Fast GPU", "cpu"]
    assert next(line for line in text.splitlines() if "| ours | 0 1 |" in line).rstrip().endswith("| Fast GPU, cpu |")
    (aim,) = [aim for aim in aims([group]) if aim.name == "seconds of training"]
    assert aim.note == "2 s of processor time, on Fast GPU"


def test_a_user_counts_in_the_seeds_that_have_them() -> None:
    runs = [{"a/b": torch.tensor([1.0, NAN])}, {"a/b": torch.tensor([0.0, 0.5]), "c/d": torch.tensor([1.0, 1.0])}]
    found = pooled(runs)
    assert found.keys() == {"a/b"}
    assert found["a/b"].tolist() == [0.5, 0.5]


def test_a_ratio_over_nothing_is_left_out() -> None:
    found = summarise({"for/share": torch.tensor([0.1, 0.2]), "for/frozen_share": torch.tensor([0.0, 0.0])})
    assert "ratio" not in found["for"]
    assert found["for"]["share"]["value"] == pytest.approx(0.15)


def test_aims_say_what_was_reached() -> None:
    paper = result("paper's gate", 0, {"truthful/ndcg": [0.4, 0.4, 0.4, NAN]})
    fusion = result("text fusion", 0, {"truthful/ndcg": [0.5, 0.5, 0.5, NAN]})
    found = {aim.name: aim for aim in aims(group_results([*RESULTS, paper, fusion]))}
    times = found["truthful NDCG@10, times that of the paper's gate with its own loss"]
    assert times.found is not None
    assert times.found.estimate == pytest.approx(1.0)  # of the seed that both have
    assert times.verdict.startswith("missed")
    best = found["truthful NDCG@10, minus that of the best learned baseline"]
    assert best.note == "the best is text fusion, seed 0 of both"
    assert best.found is not None
    assert best.found.estimate == pytest.approx(-0.1)
    assert found["for: normalised gain of satisfaction@10"].verdict.startswith("reached")
    assert found["for: personalisation retention"].verdict.startswith("missed")
    assert found["blank: overlap@10"].verdict == "reached"
    assert found["strength: Spearman of mean satisfaction"].verdict == "not measured"
    assert found["trainable parameters, millions"].verdict == "reached"


def test_a_baseline_is_compared_in_the_seeds_that_both_have() -> None:
    easy = result("lora", 1, {"truthful/ndcg": [0.6, 0.6, 0.6, NAN]})  # the seed in which ours has 0.6
    fusion = [result("text fusion", seed, {"truthful/ndcg": [0.55, 0.55, 0.55, NAN]}) for seed in (0, 1)]
    elsewhere = result("film", 2, {"truthful/ndcg": [0.9, 0.9, 0.9, NAN]})
    found = {aim.name: aim for aim in aims(group_results([*RESULTS, easy, *fusion, elsewhere]))}
    best = found["truthful NDCG@10, minus that of the best learned baseline"]
    assert best.note == "the best is text fusion"
    assert best.found is not None
    assert best.found.estimate == pytest.approx(-0.05)


def test_without_ours_there_are_no_aims() -> None:
    assert aims(group_results([result("frozen", 0, {"truthful/ndcg": [0.4]})])) == []


def test_cells_without_a_result_are_told(tmp_path: Path) -> None:
    empty = CellResult(
        Cell(DataSource("films"), "temporal", "sasrec", "reranker", 0).identity, "d", "empty", "no weights"
    )
    failed = result("frozen", 0, {"truthful/ndcg": [0.4]})
    failed.figures["checks"].append({"name": "the triple is possible", "holds": False, "detail": "0 and 1"})
    document = write_report([*RESULTS, empty, failed], tmp_path, "python -m benchmark", 60)
    text = (tmp_path / "results.md").read_text()
    assert "| films, temporal, sasrec, reranker, 0 | empty | no weights |" in text
    assert "| films, leave-one-out, sasrec, frozen, 0 | the triple is possible | 0 and 1 |" in text
    assert json.loads((tmp_path / "results.json").read_text())["groups"] == json.loads(json.dumps(document["groups"]))


def test_the_markdown_holds_the_command_and_the_figures() -> None:
    _, text = build_report(RESULTS, "python -m benchmark --matrix quick", 90)
    assert "`python -m benchmark --matrix quick`" in text
    assert "1.5 minutes" in text
    assert "| ours | 0.500 [" in text
    assert "torch " in text


def test_seeds_of_different_users_are_refused() -> None:
    with pytest.raises(DataError, match="expected the same"):
        group_results([RESULTS[0], result("ours", 1, {"truthful/ndcg": [0.1]})])
