import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.metrics import (
    expected_share,
    hit_rate,
    is_possible,
    mrr,
    mrr_interval,
    ndcg,
    overlap,
    share,
    target_ranks,
    top_items,
)

INF = math.inf
cells = st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0])  # few values, so that ties are frequent


def test_ranks_by_hand() -> None:
    scores = torch.tensor(
        [
            [3.0, 1.0, 2.0, 0.0],  # third of four
            [1.0, 1.0, 0.0, 5.0],  # shares ranks 2 and 3
            [0.0, 0.0, 0.0, 0.0],  # shares ranks 1 to 4
            [-INF, 1.0, -INF, 2.0],  # removed items are behind
            [1.0, -INF, 0.0, 2.0],  # itself removed: last
        ]
    )
    targets = torch.tensor([1, 0, 2, 1, 1])
    assert target_ranks(scores, targets).tolist() == [3.0, 2.5, 2.5, 2.0, 4.0]


@given(st.lists(st.lists(cells, min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_ranks_agree_with_a_plain_loop(rows: list[list[float]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, 3)) for _ in rows]
    found = target_ranks(torch.tensor(rows), torch.tensor(targets)).tolist()
    for row, target, rank in zip(rows, targets, found, strict=True):
        places = [place for place, score in enumerate(sorted(row, reverse=True), start=1) if score == row[target]]
        middle = len(row) if row[target] == -INF else sum(places) / len(places)
        assert rank == middle


def test_metrics_by_hand() -> None:
    ranks = torch.tensor([1.0, 2.0, 2.5, 10.0, 10.5, 40.0])
    assert hit_rate(ranks).tolist() == [1, 1, 1, 1, 0, 0]
    assert mrr(ranks).tolist() == pytest.approx([1, 0.5, 0.4, 0.1, 0, 0])
    gains = [1, 1 / math.log2(3), 1 / math.log2(3.5), 1 / math.log2(11), 0, 0]
    assert ndcg(ranks).tolist() == pytest.approx(gains)
    assert hit_rate(ranks, 2).tolist() == [1, 1, 0, 0, 0, 0]
    assert mrr(ranks, 2).tolist() == pytest.approx([1, 0.5, 0, 0, 0, 0])
    assert ndcg(ranks, 2).tolist() == pytest.approx([*gains[:2], 0, 0, 0, 0])


@given(st.lists(st.integers(2, 200).map(lambda doubled: doubled / 2), min_size=1), st.integers(1, 30))
def test_inequalities_of_each_row(values: list[float], k: int) -> None:
    ranks = torch.tensor(values)
    hits, gains, reciprocals = hit_rate(ranks, k), ndcg(ranks, k), mrr(ranks, k)
    assert bool((hits >= gains).all())
    assert bool((gains >= reciprocals).all())
    assert bool(((hits == 0) == (reciprocals == 0)).all())
    # one positive: the reciprocal rank follows from the gain, 1 / rank = 1 / (2^(1 / gain) - 1)
    inside = hits > 0
    torch.testing.assert_close(reciprocals[inside], 1 / (2 ** (1 / gains[inside]) - 1), rtol=1e-4, atol=1e-4)
    assert bool((ndcg(ranks, k + 1) >= gains).all())


def test_top_items_leave_out_what_was_seen() -> None:
    scores = torch.tensor([[9.0, 1.0, 5.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    seen = torch.tensor([[True, False, False, False], [False, False, False, True]])
    assert top_items(scores, seen, 2).tolist() == [[2, 3], [2, 1]]
    assert top_items(scores, seen, 3).tolist() == [[2, 3, 1], [2, 1, 0]]


def test_too_few_unseen_items() -> None:
    seen = torch.tensor([[False, False, False], [True, False, True]])
    with pytest.raises(DataError, match="row 1 has 1 unseen items, expected 2 or more"):
        top_items(torch.zeros(2, 3), seen, 2)
    with pytest.raises(DataError, match="row 0 has 3 unseen items, expected 4"):
        top_items(torch.zeros(2, 3), seen, 4)


lists = st.lists(st.permutations(range(6)).map(lambda order: order[:3]), min_size=2, max_size=2)


@given(lists, st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=2, max_size=2))
def test_share_agrees_with_a_plain_loop(tops: list[list[int]], flags: list[list[bool]]) -> None:
    found = share(torch.tensor(tops), torch.tensor(flags)).tolist()
    expected = [sum(row[item] for item in top) / 3 for top, row in zip(tops, flags, strict=True)]
    assert found == pytest.approx(expected)


@given(lists, lists)
def test_overlap_agrees_with_a_plain_loop(tops: list[list[int]], references: list[list[int]]) -> None:
    found = overlap(torch.tensor(tops), torch.tensor(references)).tolist()
    expected = [len(set(a) & set(b)) / 3 for a, b in zip(tops, references, strict=True)]
    assert found == pytest.approx(expected)


def test_overlap_does_not_look_at_the_order() -> None:
    def lists_of(*rows: list[int]) -> Tensor:
        return torch.tensor(rows)

    assert overlap(lists_of([1, 2, 3]), lists_of([3, 1, 2])).tolist() == [1.0]
    assert overlap(lists_of([1, 2], [1, 2]), lists_of([3, 4], [2, 9])).tolist() == [0.0, 0.5]


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_expected_share_is_the_mean_over_orders_of_equal_scores(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (1, 6), generator=generator).float()
    scores[scores == 0] = -INF  # a model may give -inf to what it can still be asked for
    seen = torch.zeros(1, 6, dtype=torch.bool).index_fill_(1, torch.randperm(6, generator=generator)[:2], True)
    flags = torch.rand(1, 6, generator=generator) < 0.5
    shares = []
    for order in itertools.permutations(range(6)):
        best = sorted((item for item in order if not seen[0, item]), key=lambda item: -float(scores[0, item]))
        shares.append(sum(bool(flags[0, item]) for item in best[:k]) / k)
    assert float(expected_share(scores, seen, flags, k)) == pytest.approx(sum(shares) / len(shares), abs=1e-6)


def test_expected_share_without_ties_is_that_of_the_list() -> None:
    scores = torch.rand(5, 20, generator=torch.Generator().manual_seed(0))
    seen, flags = scores < 0.2, (scores * 1e4).long() % 2 == 0
    torch.testing.assert_close(expected_share(scores, seen, flags, 7), share(top_items(scores, seen, 7), flags))


def test_expected_share_errors() -> None:
    flags = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(DataError, match="row 0 has 3 unseen items, expected 4"):
        expected_share(torch.zeros(2, 3), flags, flags, 4)
    with pytest.raises(DataError, match="row 1 of the scores holds NaN"):
        expected_share(torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, 1.0]]), flags, flags, 2)


# --- (HR, NDCG, MRR) triples that rankings can have


def means_of(ranks: list[float], k: int) -> tuple[float, float, float]:
    tensor = torch.tensor(ranks, dtype=torch.float64)
    return tuple(float(metric(tensor, k).double().mean()) for metric in (hit_rate, ndcg, mrr))  # type: ignore[return-value]


@given(st.lists(st.integers(2, 80).map(lambda doubled: doubled / 2), min_size=1, max_size=20), st.integers(1, 30))
def test_triples_of_rankings_are_possible(ranks: list[float], k: int) -> None:
    hr, gain, reciprocal = means_of(ranks, k)
    assert is_possible(hr, gain, reciprocal, k, ties=True)
    whole = means_of([float(math.ceil(rank)) for rank in ranks], k)
    assert is_possible(*whole, k)
    assert is_possible(*(round(value, 3) for value in whole), k, tolerance=0.00051)
    if any(rank <= k for rank in ranks):
        low, high = mrr_interval(hr, gain, k, ties=True)
        assert low - 1e-6 <= reciprocal <= high + 1e-6


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 30))
def test_both_ends_are_reached_and_nothing_lies_beyond(ranks: list[int], k: int) -> None:
    hr, gain, _ = means_of([float(rank) for rank in ranks], k)
    low, high = mrr_interval(hr, gain, k)
    assert low <= high + 1e-9
    for end, step in ((low, -1e-3), (high, 1e-3)):
        assert is_possible(hr, gain, end, k)
        assert not is_possible(hr, gain, end + step, k)
        assert is_possible(hr, gain, end + step, k, tolerance=1e-3)
    assert not is_possible(hr, hr + 0.01, hr, k)
    assert not is_possible(hr, gain - hr - 0.01, 0.0, k)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_agrees_with_all_mixtures_of_four_ranks(k: int, ties: bool) -> None:
    """A mean of rankings is a mixture of at most four kinds, a miss among them: try every four of them."""
    ranks = [1 + step / 2 for step in range(2 * k - 1)] if ties else list(range(1, k + 1))
    points = [(0.0, 0.0, 0.0), *((1.0, 1 / math.log2(1 + rank), 1 / rank) for rank in ranks)]
    corners = [torch.tensor(four, dtype=torch.float64).T for four in itertools.product(points, repeat=4)]
    systems = torch.stack([torch.cat([corner, torch.ones(1, 4, dtype=torch.float64)]) for corner in corners])
    inverses = torch.linalg.pinv(systems)
    generator = torch.Generator().manual_seed(k)
    answers = []
    for _ in range(300):
        mixed = torch.rand(len(points), generator=generator, dtype=torch.float64) ** 3
        triple = mixed / mixed.sum() @ torch.tensor(points, dtype=torch.float64)
        triple += (
            0.01 * torch.randn(3, generator=generator, dtype=torch.float64) * (torch.rand(1, generator=generator) < 0.8)
        )
        right = torch.cat([triple, torch.ones(1, dtype=torch.float64)])
        weights = inverses @ right
        solved = ((systems @ weights[:, :, None])[:, :, 0] - right).abs().amax(1) < 1e-8
        mixture = bool((solved & (weights > -1e-9).all(1)).any())
        assert is_possible(*triple.tolist(), k, tolerance=1e-9, ties=ties) == mixture
        answers.append(mixture)
    assert 30 < sum(answers) < 270  # both answers are tried


def test_triples_by_hand() -> None:
    assert is_possible(0.5, 0.5, 0.5)  # half of the targets first
    assert not is_possible(0.5, 0.5, 0.4)
    assert mrr_interval(1.0, 1 / math.log2(3)) == pytest.approx((0.5, 0.5328), abs=1e-4)
    assert is_possible(0.0, 0.0, 0.0)
    assert mrr_interval(0.0, 0.0) == (0.0, 0.0)
    assert not is_possible(1.2, 1.2, 1.2)
    assert not is_possible(math.nan, 0.1, 0.1)
    assert not is_possible(-0.1, -0.1, -0.1)
    assert is_possible(0.7, 0.7, 0.7, k=1)
    assert not is_possible(0.7, 0.6, 0.6, k=1)
    half = means_of([1.5], 10)
    assert is_possible(*half, ties=True)
    assert not is_possible(*half)


def test_triples_errors() -> None:
    with pytest.raises(DataError, match="k: found 0"):
        is_possible(0.5, 0.5, 0.5, k=0)
    with pytest.raises(DataError, match="tolerance: found -1"):
        is_possible(0.5, 0.5, 0.5, tolerance=-1)
    with pytest.raises(DataError, match=r"no rankings with one relevant item have HR@10 0\.5 and NDCG@10 0\.6"):
        mrr_interval(0.5, 0.6)
