from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmark.cell_files import CellResult
from benchmark.report.aims import aims
from benchmark.report.groups import group_results
from benchmark.report.write_report import build_report

NAN = torch.nan


def test_a_gpu_is_named_beside_the_times_it_made(results: list[CellResult]) -> None:
    for cell, device in zip(results, ("Fast GPU", "cpu"), strict=True):
        cell.figures["trained_on"] = device
        cell.figures["seconds"]["train_cpu"] = 2.0
    (group,) = group_results(results)
    assert group.trained_on == ("Fast GPU", "cpu")
    document, text = build_report(results, "command", 60.0)
    assert document["groups"][0]["trained_on"] == ["Fast GPU", "cpu"]
    assert next(line for line in text.splitlines() if "| ours | 0 1 |" in line).rstrip().endswith("| Fast GPU, cpu |")
    (aim,) = [aim for aim in aims([group]) if aim.name == "seconds of training"]
    assert aim.note == "2 s of processor time, on Fast GPU"


def test_aims_say_what_was_reached(results: list[CellResult], result: Callable[..., CellResult]) -> None:
    paper = result("paper's form", 0, {"truthful/ndcg": [0.4, 0.4, 0.4, NAN]})
    fusion = result("text fusion", 0, {"truthful/ndcg": [0.5, 0.5, 0.5, NAN]})
    found = {aim.name: aim for aim in aims(group_results([*results, paper, fusion]))}
    times = found["truthful NDCG@10, times that of the paper's form with its own loss"]
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


def test_a_baseline_is_compared_in_the_seeds_that_both_have(
    results: list[CellResult], result: Callable[..., CellResult]
) -> None:
    easy = result("lora", 1, {"truthful/ndcg": [0.6, 0.6, 0.6, NAN]})  # the seed in which ours has 0.6
    fusion = [result("text fusion", seed, {"truthful/ndcg": [0.55, 0.55, 0.55, NAN]}) for seed in (0, 1)]
    elsewhere = result("film", 2, {"truthful/ndcg": [0.9, 0.9, 0.9, NAN]})
    found = {aim.name: aim for aim in aims(group_results([*results, easy, *fusion, elsewhere]))}
    best = found["truthful NDCG@10, minus that of the best learned baseline"]
    assert best.note == "the best is text fusion"
    assert best.found is not None
    assert best.found.estimate == pytest.approx(-0.05)


def test_without_ours_there_are_no_aims(result: Callable[..., CellResult]) -> None:
    assert aims(group_results([result("frozen", 0, {"truthful/ndcg": [0.4]})])) == []
