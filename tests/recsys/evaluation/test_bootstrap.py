import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation import bootstrap
from cramer_peft.recsys.evaluation.bootstrap import (
    Interval,
    difference_interval,
    mean_interval,
    ratio_interval,
    resampled_means,
    statistic_interval,
)


def normal(users: int, mean: float, seed: int = 0) -> Tensor:
    return mean + torch.randn(users, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_interval_of_a_mean_is_the_textbook_one() -> None:
    values = normal(400, 3.0)
    found = mean_interval(values, samples=4000)
    half = 1.96 * float(values.std()) / 20
    assert found.estimate == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.estimate - half, abs=0.015)
    assert found.high == pytest.approx(found.estimate + half, abs=0.015)
    narrow = mean_interval(values, level=0.5, samples=4000)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * half / 1.96, abs=0.02)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        found = mean_interval(normal(60, 1.0, seed), samples=400, seed=seed)
        held += found.low <= 1.0 <= found.high
    assert 178 <= held <= 199  # 190 expected; its standard deviation is 3


def test_a_pair_is_drawn_together() -> None:
    first = normal(50, 0.0)
    shifted = difference_interval(first + 0.25, first)
    assert (shifted.low, shifted.estimate, shifted.high) == pytest.approx((0.25, 0.25, 0.25))
    doubled = ratio_interval(2 * first.exp(), first.exp())
    assert (doubled.low, doubled.estimate, doubled.high) == pytest.approx((2, 2, 2))
    unpaired = difference_interval(first + 0.25, first[torch.randperm(50, generator=torch.Generator().manual_seed(1))])
    assert unpaired.low < 0 < unpaired.high


def test_a_ratio_is_one_of_means_not_a_mean_of_ratios() -> None:
    assert ratio_interval(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])).estimate == 2
    assert ratio_interval(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])).estimate == 0.5


def test_an_infinite_ratio_among_the_resamples_is_kept_apart() -> None:
    values = torch.ones(12), torch.tensor([1.0] + 11 * [0.0])
    found = ratio_interval(*values, samples=200)
    assert found.estimate == pytest.approx(12)
    assert found.low >= 12 / 5
    assert found.high == float("inf")  # more than 2.5% of the resamples leave out the only user above 0


def test_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(30, 0.0)
    first = resampled_means(values, 64, seed=3)
    assert torch.equal(first, resampled_means(values, 64, seed=3))
    assert not torch.equal(first, resampled_means(values, 64, seed=4))
    monkeypatch.setattr(bootstrap, "_CELLS", 30 * 10)  # blocks of ten draw the same users
    torch.testing.assert_close(resampled_means(values, 64, seed=3), first)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.integers(0, 5))
def test_ends_lie_around_the_estimate_and_inside_the_values(values: list[float], seed: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    means = resampled_means(tensor, 50, seed)
    assert means.shape == (50,)
    found = mean_interval(tensor, samples=50, seed=seed)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.estimate == pytest.approx(float(tensor.mean()))


def test_any_statistic_of_means() -> None:
    values = torch.stack([normal(300, 1.0), normal(300, 2.0, seed=1), normal(300, 3.0, seed=2)], dim=1)
    found = statistic_interval(values, lambda means: (means[:, 2] - means[:, 0]) / means[:, 1])
    assert found.low < 1.0 < found.high
    assert resampled_means(values, 7).shape == (7, 3)


def test_text() -> None:
    assert str(Interval(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"


def test_errors() -> None:
    with pytest.raises(DataError, match=r"found shape \(0, 1\)"):
        mean_interval(torch.zeros(0))
    with pytest.raises(DataError, match="row 1 is not finite"):
        mean_interval(torch.tensor([0.0, float("nan")]))
    with pytest.raises(DataError, match="the same users"):
        difference_interval(torch.zeros(3), torch.zeros(4))
    with pytest.raises(DataError, match="the same users"):
        mean_interval(torch.zeros(3, 2))
    with pytest.raises(DataError, match="second values is 0"):
        ratio_interval(torch.ones(3), torch.zeros(3))
    with pytest.raises(DataError, match="undefined on"):
        ratio_interval(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]))  # 0 / 0 where only the second is drawn
    with pytest.raises(DataError, match="level: found 1"):
        mean_interval(torch.ones(3), level=1)
    with pytest.raises(DataError, match="samples: found 0"):
        mean_interval(torch.ones(3), samples=0)
