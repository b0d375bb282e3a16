import math
import random

import pytest
import torch
from benchmark.measures import control
from benchmark.measures.control import (
    attribute_shares,
    distinctness,
    pair_influence,
    spearman,
    spill_over,
)
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.bootstrap import mean_interval

seeds = st.integers(0, 10_000)


def test_spearman_by_hand() -> None:
    strengths = torch.tensor([0.0, 0.5, 1.0, 2.0])
    values = torch.tensor([[0.0, 0.1, 0.7, 0.8], [3.0, 2.0, 1.0, 0.0], [0.2, 0.2, 0.2, 0.2], [0.0, 1.0, 1.0, 2.0]])
    tied = 4.5 / math.sqrt(5 * 4.5)  # ranks 1, 2.5, 2.5, 4 against 1 to 4
    assert spearman(strengths, values).tolist() == pytest.approx([1, -1, 0, tied])
    assert float(spearman(strengths, values[0])) == pytest.approx(1)


@given(st.permutations(range(6)), seeds)
def test_spearman_agrees_with_the_formula_without_ties_and_looks_at_order_alone(order: list[int], seed: int) -> None:
    strengths, values = torch.arange(6.0), torch.tensor(order, dtype=torch.float32)
    squares = sum((place - value) ** 2 for place, value in enumerate(order))
    found = float(spearman(strengths, values))
    assert found == pytest.approx(1 - 6 * squares / (6 * 35), abs=1e-9)
    assert float(spearman(strengths.exp(), values**3)) == pytest.approx(found)
    assert float(spearman(strengths, -values)) == pytest.approx(-found, abs=1e-9)
    mixed = torch.tensor(random.Random(seed).sample(range(6), 6))
    assert float(spearman(strengths[mixed], values[mixed])) == pytest.approx(found, abs=1e-9)


def test_spearman_errors() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\) and values of shape \(2, 4\)"):
        spearman(torch.arange(3.0), torch.zeros(2, 4))
    with pytest.raises(DataError, match="hold NaN"):
        spearman(torch.arange(2.0), torch.tensor([0.0, math.nan]))
    with pytest.raises(DataError, match="two or more different"):
        spearman(torch.ones(3), torch.zeros(3))


@given(
    st.lists(st.permutations(range(7)).map(lambda order: order[:3]), min_size=2, max_size=6), st.sampled_from([1, 1024])
)
def test_distinctness_agrees_with_a_plain_loop(tops: list[list[int]], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "_PAIR_BATCH", batch)
        found = distinctness(torch.tensor(tops)).tolist()
    sets = [set(top) for top in tops]
    for user, own in enumerate(sets):
        others = [len(own & other) / len(own | other) for index, other in enumerate(sets) if index != user]
        assert found[user] == pytest.approx(1 - sum(others) / len(others), abs=1e-5)


def test_distinctness_at_its_ends() -> None:
    assert distinctness(torch.tensor([[1, 2], [2, 1]])).tolist() == [0.0, 0.0]
    assert distinctness(torch.tensor([[1, 2], [3, 4]])).tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="found 1 list"):
        distinctness(torch.tensor([[1, 2]]))


def test_pair_influence_gives_the_spread_over_users() -> None:
    """Against what fresh samples of users give: the spread of the mean over pairs."""
    generator = torch.Generator().manual_seed(0)

    def lists() -> torch.Tensor:
        uniform = torch.rand(60, 12, generator=generator)
        lean = torch.rand(60, 1, generator=generator) * 3  # some lean to the same items, some do not
        return (uniform + lean * torch.linspace(0, 1, 12)).topk(3, dim=1).indices

    means = [distinctness(lists()) for _ in range(200)]
    spread = float(torch.stack([mean.mean() for mean in means]).std())
    values = pair_influence(means[0])
    assert float(values.mean()) == pytest.approx(float(means[0].mean()), abs=1e-5)
    found = mean_interval(values)
    assert (found.high - found.low) / 3.92 == pytest.approx(spread, rel=0.35)
    single = mean_interval(means[0])
    assert (single.high - single.low) / 3.92 < 0.75 * spread  # what it is for


def test_shares_and_spill_over_by_hand() -> None:
    items = torch.tensor([[True, False], [True, True], [False, True], [False, False]])
    before = attribute_shares(torch.tensor([[0, 1], [0, 3], [2, 3]]), items)
    assert before.tolist() == [[1.0, 0.5], [0.5, 0.0], [0.0, 0.5]]
    after = attribute_shares(torch.tensor([[0, 3], [1, 2], [0, 1]]), items)
    matrix, count = spill_over(before, after, torch.tensor([1, 1, 0]))
    assert matrix.tolist() == [[1.0, 0.0], [-0.25, 0.25]]
    assert count.tolist() == [1, 2]
    matrix, count = spill_over(before, after, torch.tensor([1, 1, 1]))
    assert bool(matrix[0].isnan().all())
    assert count.tolist() == [0, 3]


@given(seeds)
def test_spill_over_adds_up_to_the_mean_change(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.rand(2, 8, 3, generator=generator, dtype=torch.float64)
    asked = torch.randint(3, (8,), generator=generator)
    matrix, count = spill_over(before, after, asked)
    torch.testing.assert_close((matrix.nan_to_num() * count[:, None]).sum(0) / 8, (after - before).mean(0))
    assert not bool(spill_over(before, before, asked)[0].nan_to_num().any())


def test_spill_over_errors() -> None:
    shares = torch.zeros(2, 3)
    for asked in (torch.tensor([0]), torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(DataError, match="expected 2 columns in 0 … 2"):
            spill_over(shares, shares, asked)
    with pytest.raises(DataError, match="shapes differ"):
        spill_over(shares, torch.zeros(2, 4), torch.tensor([0, 0]))
