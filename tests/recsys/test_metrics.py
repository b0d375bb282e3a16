import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.metrics import hit_rate, mrr, ndcg, overlap, share, target_ranks, top_items

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
