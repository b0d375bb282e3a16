from __future__ import annotations

from dataclasses import replace

import pytest
from benchmark import methods
from benchmark.baselines.learning import LearnedRanker
from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.data import DataSize
from benchmark.methods import METHODS, Method, mask_config, not_on
from benchmark.plan.costs import estimate_cell

SMALL, LARGE = DataSize(100, 50, 1000), DataSize(100, 5000, 1000)

CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "ours", 0)


@pytest.mark.parametrize("name", METHODS)
def test_what_needs_the_inside_of_sasrec_is_said_to(name: str) -> None:
    made = METHODS[name].make
    settings = CellSettings(encoder="hashing", language_model="none")
    ranker = None if made is None or name == "reranker" else made(mask_config(name, settings), settings)
    needs = isinstance(ranker, LearnedRanker) and not ranker.any_backbone
    assert (not_on(name, None, "gru4rec") is not None) == needs
    assert not_on(name, None, "sasrec") is None
    if needs:
        assert estimate_cell(replace(CELL, method=name, backbone="gru4rec"), SMALL) == 0


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_known_by_its_ranker(name: str) -> None:
    method: Method = METHODS[name]
    settings = CellSettings(encoder="hashing")
    if method.make is None or name == "reranker":
        return
    ranker = method.make(methods.mask_config(name, settings), settings)
    assert ranker.trainable == 0


def test_the_smaller_limit_of_users_counts() -> None:
    few, all_users = Method(None, max_users=5), Method(None)
    assert [few.most_users(limit) for limit in (None, 3, 9)] == [5, 3, 5]
    assert [all_users.most_users(limit) for limit in (None, 3)] == [None, 3]
