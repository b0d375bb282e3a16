from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmark.cell_files import CellResult
from benchmark.measures.summary import pooled, summarise
from benchmark.report.groups import group_results

from cramer_peft.errors import DataError

NAN = torch.nan


def test_seeds_are_averaged_per_user_first(results: list[CellResult]) -> None:
    (group,) = group_results(results)
    assert group.seeds == (0, 1)
    torch.testing.assert_close(group.values["truthful/ndcg"], torch.tensor([0.4, 0.4, 0.7, NAN]), equal_nan=True)
    assert group.tracks["truthful"]["ndcg"]["value"] == pytest.approx(0.5)
    assert group.tracks["truthful"]["users"] == 3
    assert group.tracks["truthful"]["ndcg_ratio"]["value"] == pytest.approx(2.5)
    assert group.tracks["for"]["normalised_gain"]["value"] == pytest.approx((0.7 - 0.2) / (0.8 - 0.2))
    assert group.tracks["for"]["retention"]["value"] == pytest.approx(0.4 / 0.5)
    assert group.seconds == {"train": 2.5, "evaluate": 1.0}


def test_a_user_counts_in_the_seeds_that_have_them() -> None:
    runs = [{"a/b": torch.tensor([1.0, NAN])}, {"a/b": torch.tensor([0.0, 0.5]), "c/d": torch.tensor([1.0, 1.0])}]
    found = pooled(runs)
    assert found.keys() == {"a/b"}
    assert found["a/b"].tolist() == [0.5, 0.5]


def test_a_ratio_over_nothing_is_left_out() -> None:
    found = summarise({"for/share": torch.tensor([0.1, 0.2]), "for/frozen_share": torch.tensor([0.0, 0.0])})
    assert "ratio" not in found["for"]
    assert found["for"]["share"]["value"] == pytest.approx(0.15)


def test_seeds_of_different_users_are_refused(results: list[CellResult], result: Callable[..., CellResult]) -> None:
    with pytest.raises(DataError, match="expected the same"):
        group_results([results[0], result("ours", 1, {"truthful/ndcg": [0.1]})])
