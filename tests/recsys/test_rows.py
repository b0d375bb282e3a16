"""Lists for many histories at once: the same as for each alone, over the items that may be recommended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.errors import DataError, RequestError
from cramer_peft.recsys import recommender as module
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import Answer, RequestRecommender
from cramer_peft.recsys.rows import Rows, are_many, best_lists

HISTORIES = [[3, 7, 11], [0], list(range(20)), [39, 38]]
REQUESTS = ["more horror please", None, "no comedy", " "]


class Exact(nn.Module):
    """Scores 40 items by sums of whole numbers, so that a batch and a single row have the same bits."""

    name, max_length, num_items, expands_positions = "exact", 8, 40, False

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.randint(-50, 50, (41, 40), generator=torch.Generator().manual_seed(1))
        self.table = nn.Parameter(numbers.float())

    def forward(self, item_ids: Tensor) -> Tensor:
        return self.table[item_ids].sum(1)


@pytest.fixture
def exact(catalogue: Catalogue) -> RequestRecommender:
    config = RequestMaskConfig(encoder="hashing", encoder_options={"dim": 16}, init_weights=False)
    masks = mask_backbone(Exact().eval(), catalogue, config)
    with torch.no_grad():  # and so are what the masks add
        for parameter in masks.generator.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    return RequestRecommender(masks, catalogue)


def alone(recommender: RequestRecommender, **options: Any) -> list[Answer]:
    return [recommender.recommend(one, text, **options) for one, text in zip(HISTORIES, REQUESTS, strict=True)]


def assert_alike(found: list[Answer], expected: list[Answer]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.items, one.frozen_items, one.heard, one.shares) == (
            other.items,
            other.frozen_items,
            other.heard,
            other.shares,
        )
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_a_batch_has_the_lists_of_the_single_calls(masks: RequestMaskModel, catalogue: Catalogue) -> None:
    recommender = RequestRecommender(masks, catalogue)
    found = recommender.recommend(HISTORIES, REQUESTS, strength=6.0, k=25)
    assert_alike(found, alone(recommender, strength=6.0, k=25))
    assert [len(answer.items) for answer in found] == [25, 25, 20, 25]
    assert found[0].items != found[0].frozen_items
    assert found[1].items == found[1].frozen_items


def test_scores_have_the_same_bits_where_sums_are_exact(exact: RequestRecommender) -> None:
    histories = [torch.tensor(own) for own in HISTORIES]
    together = exact.scores(histories)
    for row, history in enumerate(histories):
        assert torch.equal(exact.scores([history])[0], together[row])
    found = exact.recommend(HISTORIES, None, k=12)
    assert found == [exact.recommend(history, None, k=12) for history in HISTORIES]
    for row, answer in enumerate(found):
        assert answer.scores == together[row][answer.items].tolist()
        assert answer.scores == sorted(answer.scores, reverse=True)


def test_more_rows_than_are_scored_together(exact: RequestRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exact.recommend(HISTORIES, "more horror", exclude=[[1], [2], [3], [4]], candidates=range(30))
    monkeypatch.setattr(module, "BATCH", 3)
    parts = exact.recommend(HISTORIES, "more horror", exclude=[[1], [2], [3], [4]], candidates=range(30))
    assert_alike(parts, whole)
    with pytest.raises(DataError, match=r"histories\[3\]: found k=10 and 0 unseen items that may be recommended"):
        exact.recommend(HISTORIES, None, candidates=[[1], [2], [30], [38]])


def test_candidates_and_exclude(exact: RequestRecommender) -> None:
    every = exact.recommend([3, 7, 11], None, k=40).items
    some = [2, 3, 4, 20, 21]
    assert exact.recommend([3, 7, 11], None, candidates=some).items == [item for item in every if item in some]
    assert exact.recommend([3, 7, 11], None, k=40, exclude=some).items == [item for item in every if item not in some]
    both = exact.recommend([3, 7, 11], None, candidates=set(some), exclude=np.array([4, 3, 39]))
    assert both.items == both.frozen_items == [item for item in every if item in (2, 20, 21)]
    rows = exact.recommend(HISTORIES, None, k=40, candidates=[some, [5], [39], {1, 2}], exclude=torch.tensor([20]))
    assert [sorted(answer.items) for answer in rows] == [[2, 4, 21], [5], [39], [1, 2]]
    rows = exact.recommend(HISTORIES, None, k=2, exclude=[(), some, [], range(37)])
    assert rows[0].items == every[:2]
    assert rows[3].items == [37]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": [40]}, "candidates: history: item index 40"),
        ({"candidates": [[1], [2], [3], [-1]]}, r"candidates\[3\]: history: item index -1"),
        ({"candidates": [[1], [2]]}, "candidates: found 2 for 4 histories"),
        ({"candidates": []}, r"histories\[0\]: found k=10 and 0 unseen items"),
        ({"candidates": 5}, "candidates: found 5, expected a collection"),
        ({"candidates": "12"}, "candidates: found '12', expected a collection"),
        ({"exclude": [[1], [2], [3.5], []]}, r"exclude\[2\]: history\[0\]: found 3.5"),
        ({"exclude": range(40)}, "0 unseen items"),
        ({"k": 0}, r"histories\[0\]: found k=0"),
        ({"before": ["more horror"]}, r"request\[0\]: before: .*reads one request alone"),
    ],
)
def test_what_does_not_fit_is_named(exact: RequestRecommender, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        exact.recommend(HISTORIES, "more horror", **given)


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[3], [40]], r"histories\[1\]: history: item index 40 is not in 0 … 39"),
        ([[3], []], r"histories\[1\] is empty"),
        ([[3], 4], r"histories\[1\]: history: found 4, expected a sequence"),
        ([[3], ["4"]], r"histories\[1\]: history\[0\]: found '4'"),
        ([[3], list(range(40))], r"histories\[1\]: found k=10 and 0 unseen"),
    ],
)
def test_a_bad_row_is_named(exact: RequestRecommender, histories: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        exact.recommend(histories, None)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (["a", "b"], "found .* for 4 histories"),
        (["a", None, 5, "b"], r"request\[2\]: found 5"),
        (["a", None, "half \ud83d", "b"], r"ud83d"),
        (7, "found 7 for 4 histories"),
        (b"text", "expected a text or None for all"),
    ],
)
def test_requests_that_do_not_fit_the_rows(exact: RequestRecommender, requests: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        exact.recommend(HISTORIES, requests)


def test_one_request_for_all_and_vectors(exact: RequestRecommender) -> None:
    texts = ["more horror"] * 4
    assert_alike(exact.recommend(HISTORIES, "more horror"), exact.recommend(HISTORIES, texts))
    vectors = exact.masks.encode(texts)
    assert_alike(exact.recommend(HISTORIES, vectors), exact.recommend(HISTORIES, texts))  # type: ignore[call-overload]
    assert_alike(exact.recommend(HISTORIES, vectors[0]), exact.recommend(HISTORIES, texts))  # type: ignore[call-overload]
    assert exact.recommend(HISTORIES[0], vectors[0]).items == exact.recommend(HISTORIES[0], "more horror").items  # type: ignore[call-overload]


def test_no_rows(exact: RequestRecommender) -> None:
    assert exact.recommend([], []) == []
    with pytest.raises(DataError, match=r"histories\[0\] is empty"):
        exact.recommend([], "more horror")


def test_a_list_of_tensors_is_many(exact: RequestRecommender) -> None:
    assert exact.recommend([torch.tensor([3, 7])], None) == [exact.recommend([3, 7], None)]
    assert not are_many(torch.tensor([[3]]), None)


def test_a_conversation_for_each_row(taught: RequestMaskModel, catalogue: Catalogue) -> None:
    recommender = RequestRecommender(taught, catalogue)
    before = [["more horror"], [], ["comedy", "no drama"], []]
    requests = ["less of that", "something funny", "more horror", None]
    found = recommender.recommend(HISTORIES, requests, before=before)
    expected = [
        recommender.recommend(history, text, before=own)
        for history, text, own in zip(HISTORIES, requests, before, strict=True)
    ]
    assert_alike(found, expected)
    assert str(found[0].heard) == "unwanted: horror"
    with pytest.raises(DataError, match=r"request\[3\]: before: .*without a request"):
        recommender.recommend(HISTORIES, requests, before=["more horror"])


def test_a_text_is_read_once(taught: RequestMaskModel, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    from cramer_peft.recsys.requests.hearing import HearingEncoder

    read: list[str] = []
    listen = HearingEncoder.listen

    def counted(self: HearingEncoder, text: str, *given: Any) -> Any:
        read.append(text)
        return listen(self, text, *given)

    monkeypatch.setattr(HearingEncoder, "listen", counted)
    recommender = RequestRecommender(taught, catalogue)
    for _ in range(2):
        recommender.recommend(HISTORIES, ["more horror", "no comedy", "more horror", None])
    assert read == ["more horror", "no comedy"]


@given(st.data())
def test_lists_are_the_best_of_what_is_left(data: st.DataObject) -> None:
    rows, items, k = (data.draw(st.integers(1, most)) for most in (4, 12, 14))
    scores = torch.tensor(
        data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=items, max_size=items), min_size=rows, max_size=rows))
    ).float()
    barred = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=items, max_size=items), min_size=rows, max_size=rows))
    )
    found, values = best_lists(scores, barred, k)
    for row in range(rows):
        left = [item for item in range(items) if not barred[row, item]]
        expected = sorted(left, key=lambda item: (-float(scores[row, item]), item))[:k]
        assert found[row] == expected
        assert values[row] == [float(scores[row, item]) for item in expected]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=7), st.integers(1, 8))
def test_pieces_are_the_rows_in_order(histories: list[list[int]], size: int) -> None:
    rows = Rows.of(histories, None, 10, exclude=[[own[0]] for own in histories])
    pieces = list(rows.pieces(size))
    assert [own.tolist() for piece in pieces for own in piece.histories] == histories
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    for piece in pieces:
        assert [own.tolist() for own in piece.exclude] == [own[:1] for own in histories[piece.first :][: len(piece)]]  # type: ignore[index, misc]
