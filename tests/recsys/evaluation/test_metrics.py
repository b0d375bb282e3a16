import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation import batches
from cramer_peft.recsys.evaluation.metrics import (
    best_share,
    expected_share,
    finite_scores,
    hit_rate,
    mrr,
    ndcg,
    ndcg_inside,
    overlap,
    share,
    target_ranks,
    top_items,
    unseen_ranks,
)
from cramer_peft.recsys.evaluation.results import RATIOS

INF = math.inf
seeds = st.integers(0, 10_000)
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


@given(st.lists(st.lists(cells, min_size=7, max_size=7), min_size=1, max_size=5), st.integers(0, 10_000))
def test_of_equal_scores_the_first_item_comes_first(rows: list[list[float]], seed: int) -> None:
    scores, generator = torch.tensor(rows), torch.Generator().manual_seed(seed)
    seen = torch.rand(scores.shape, generator=generator) < 0.3
    unseen = int((~seen).sum(1).min())
    for k in range(1, unseen + 1):
        expected = [
            sorted((item for item in range(7) if not seen[row, item]), key=lambda item: (-values[item], item))[:k]
            for row, values in enumerate(rows)
        ]
        assert top_items(scores, seen, k).tolist() == expected


def test_a_short_list_begins_a_long_one() -> None:
    scores = torch.randint(0, 50, (4, 3000), generator=torch.Generator().manual_seed(0)).float()
    seen = torch.zeros(4, 3000, dtype=torch.bool)
    longest = top_items(scores, seen, 200)
    for k in (1, 5, 100):
        assert torch.equal(top_items(scores, seen, k), longest[:, :k])


def test_metrics_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (11, 40), generator=generator).float()
    seen, flags = (torch.rand(11, 40, generator=generator) < 0.4 for _ in range(2))
    targets = (flags & ~seen).int().argmax(1)

    def measured() -> list[Tensor]:
        return [
            top_items(scores, seen, 5),
            expected_share(scores, seen, flags, 5),
            best_share(flags, seen, 5),
            unseen_ranks(scores, seen, targets),
            ndcg_inside(scores, seen, flags, targets, 5),
        ]

    whole = measured()
    assert torch.equal(whole[3], target_ranks(scores.masked_fill(seen, -INF), targets))
    for piece in (1, 120):
        monkeypatch.setattr(batches, "_PIECE", piece)
        for found, expected in zip(measured(), whole, strict=True):
            assert torch.equal(found, expected)
        with pytest.raises(DataError, match="row 7 has 0 unseen items"):
            top_items(scores, seen.index_fill(0, torch.tensor([7]), True), 5)


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


# --- control


def made(seed: int, rows: int = 6, items: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with ties, seen items, items that fit, and a target that fits and is unseen."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (rows, items), generator=generator).float()
    seen = torch.rand(rows, items, generator=generator) < 0.3
    fits = torch.rand(rows, items, generator=generator) < 0.5
    targets = torch.randint(items, (rows,), generator=generator)
    seen.scatter_(1, targets[:, None], False)
    seen[:, :3] &= False
    fits.scatter_(1, targets[:, None], True)
    return scores, seen, fits, targets


@given(seeds, st.integers(1, 3))
def test_no_list_beats_the_best_share_and_the_filter_reaches_it(seed: int, k: int) -> None:
    scores, seen, fits, _ = made(seed)
    best = best_share(fits, seen, k)
    assert bool((expected_share(scores, seen, fits, k) <= best + 1e-6).all())
    torch.testing.assert_close(expected_share(scores + 100 * fits, seen, fits, k), best)


def normalised_gain(*columns: Tensor) -> list[Tensor]:
    """Numerator and denominator, of the satisfaction, the frozen model's and the largest."""
    ratio, stacked = RATIOS["normalised_gain"], torch.stack(columns, -1)
    return [ratio.above(stacked), ratio.below(stacked)]


def test_normalised_gain_by_hand() -> None:
    parts = normalised_gain(torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.5]), torch.tensor([0.75, 1.0]))
    assert [part.tolist() for part in parts] == [[0.25, 0.5], [0.5, 0.5]]


@given(seeds, st.integers(1, 3))
def test_normalised_gain_of_the_frozen_model_and_of_the_filter(seed: int, k: int) -> None:
    scores, seen, fits, _ = made(seed)
    frozen, best = expected_share(scores, seen, fits, k), best_share(fits, seen, k)
    assert normalised_gain(frozen, frozen, best)[0].tolist() == [0.0] * 6
    torch.testing.assert_close(*normalised_gain(best, frozen, best))


@given(seeds)
def test_ndcg_inside_is_that_of_a_filter(seed: int) -> None:
    scores, seen, fits, targets = made(seed)
    assert torch.equal(
        ndcg_inside(scores + 100 * fits, seen, fits, targets, 3), ndcg_inside(scores, seen, fits, targets, 3)
    )
    whole = ndcg(target_ranks(scores.masked_fill(seen, -torch.inf), targets), 3)
    assert torch.equal(ndcg_inside(scores, seen, torch.ones_like(fits), targets, 3), whole)


def test_ndcg_inside_by_hand() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    seen = torch.tensor([[True, False, False, False, False]])
    fits = torch.tensor([[True, False, True, False, True]])
    assert ndcg_inside(scores, seen, fits, torch.tensor([2])).tolist() == [1.0]
    assert ndcg_inside(scores, seen, fits, torch.tensor([4])).tolist() == pytest.approx([1 / math.log2(3)])
    assert ndcg_inside(scores, seen, fits, torch.tensor([4]), k=1).tolist() == [0.0]
    for target in (1, 0):  # does not satisfy; seen
        with pytest.raises(DataError, match=f"row 0: the target {target} does not satisfy"):
            ndcg_inside(scores, seen, fits, torch.tensor([target]))


@pytest.mark.parametrize("value", [math.nan, INF, -INF])
def test_a_models_scores_are_finite(value: float) -> None:
    scores = torch.tensor([[0.5, -3e38, 2.0], [1.0, 3e38, 0.0]])
    assert torch.equal(finite_scores(scores), scores)
    scores[1, 2] = value
    with pytest.raises(DataError, match=rf"row 1 of the scores: found {value} for item 2 \(1 scores of 6"):
        finite_scores(scores)


def test_nan_is_in_no_list() -> None:
    scores, seen = torch.tensor([[0.5, math.nan, 2.0]]), torch.zeros(1, 3, dtype=torch.bool)
    with pytest.raises(DataError, match="row 0 of the scores holds NaN"):
        top_items(scores, seen, 2)
    assert top_items(torch.tensor([[0.5, -INF, 2.0]]), seen, 2).tolist() == [[2, 0]]
