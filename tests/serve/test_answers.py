"""Concurrent calls get what a single-threaded reference gives."""

import asyncio
import random
from typing import Any

import pytest
import torch
from serve.ranking import best_items
from serve.stacking import rows_of, stacked

from cramer_peft.recsys.recommender import RequestRecommender

WORDS = ["horror", "funny", "quiet", "long", "war", "space", "love", "no", "old", "new"]


def make_calls(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Calls with histories of many lengths, a text of their own or none, and lists of several lengths."""
    rng = random.Random(seed)
    return [
        {
            "history": [f"i{item}" for item in rng.sample(range(11, 59), rng.randint(1, 20))],
            "request": None if index % 5 == 0 else f"{' '.join(rng.sample(WORDS, 3))} {index}",
            "k": rng.choice([5, 10, 20]),
        }
        for index in range(number)
    ]


def reference(recommender: RequestRecommender, call: dict[str, Any]) -> list[str]:
    ids = recommender.catalogue.item_ids
    history = [ids.index(item_id) for item_id in call["history"]]
    return [ids[item] for item in recommender.recommend(history, call["request"], k=call["k"]).items]


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_many_different_calls_at_once(run, serving, recommender: RequestRecommender, max_batch: int) -> None:
    calls = make_calls(120)
    expected = [reference(recommender, call) for call in calls]
    assert len(set(map(tuple, expected))) > 100

    async def work() -> None:
        async with serving(recommender, max_batch=max_batch, max_queue=200, cache_entries=50) as client:
            replies = await asyncio.gather(*map(client.post, calls))
            assert [reply.ids for reply in replies] == expected
            again = await asyncio.gather(*map(client.post, calls[60:]))  # some from the cache
            assert [reply.ids for reply in again] == expected[60:]
            batches = await client.metric("cramer_batch_rows_count")
            assert await client.metric("cramer_batch_rows_sum") == 180
            assert batches == 180 if max_batch == 1 else batches < 180
            assert await client.metric('cramer_responses_total{status="200"}') == 180
            assert await client.metric("cramer_seconds_count") == 180

    run(work())


def test_a_request_moves_the_list_and_blank_is_none(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            history = ["i20", "i30"]
            bodies = [{"history": history, "request": text} for text in ("more horror", None, "", " \n")]
            asked, *frozen = [(await client.post(body)).ids for body in [*bodies, {"history": history}]]
            assert len(asked) == 10
            assert all(ids == frozen[0] != asked for ids in frozen)

    run(work())


def test_what_a_list_holds(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            history = [{"item_id": f"i{item}"} for item in range(57)]
            reply = await client.post({"history": history, "k": 10})
            assert {item["item_id"]: item["title"] for item in reply.json["items"]} == {
                "i57": "Tale 57",
                "i58": "Tale 58",
                "99": "Tale 59",
            }

    run(work())


def test_a_row_that_fails_alone_fails_alone(
    run, serving, recommender: RequestRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = recommender.masks.encoder().encoder
    encode = encoder.encode

    def fails(texts: list[str]) -> torch.Tensor:
        vectors = encode(texts)
        vectors[["nothing known" in text for text in texts]] = torch.nan
        return vectors

    monkeypatch.setattr(encoder, "encode", fails)
    calls = make_calls(12)
    calls[4]["request"] = "nothing known here"
    expected = [[] if index == 4 else reference(recommender, call) for index, call in enumerate(calls)]

    async def work() -> None:
        async with serving(recommender, max_wait=0.05) as client:
            replies = await asyncio.gather(*map(client.post, calls))
            assert [[] if index == 4 else reply.ids for index, reply in enumerate(replies)] == expected
            assert replies[4].status == 422
            assert "nothing known here" in replies[4].json["error"]["message"]

    run(work())


def test_equal_scores_come_in_the_order_of_items() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -torch.inf])
    lists = best_items(scores.expand(6, -1), [1, 2, 3, 4, 6, 7])
    assert lists == [[1], [1, 3], [1, 3, 2], [1, 3, 2, 4], [1, 3, 2, 4, 5, 0], [1, 3, 2, 4, 5, 0]]
    assert [best_items(scores[None], [k])[0] for k in (1, 2, 3, 4, 6, 7)] == lists
    assert best_items(torch.full((2, 3), -torch.inf), [1, 5]) == [[], []]
    assert best_items(torch.zeros(1, 5000), [10]) == [list(range(10))]
    for seed in range(20):
        scores = torch.randint(0, 9, (4, 30), generator=torch.Generator().manual_seed(seed)).float()
        scores[scores == 3] = -torch.inf
        expected = [[i for i in row.argsort(descending=True, stable=True).tolist() if row[i] >= 0] for row in scores]
        assert best_items(scores, [1, 7, 20, 30]) == [r[:k] for r, k in zip(expected, (1, 7, 20, 30), strict=True)]
    with pytest.raises(ValueError, match="NaN"):
        best_items(torch.tensor([[0.0, torch.nan]]), [1])


def test_rows_of_states(recommender: RequestRecommender) -> None:
    masks = recommender.masks
    with torch.no_grad():
        whole = masks.mask_state(["a b", None, "c d"])
        rows = rows_of(whole)
        together = stacked([rows[2], None, rows[0]])
    assert together is not None
    assert together.active.tolist() == [True, False, True]
    assert together.texts == ("c d", None, "a b")
    for name, parts in whole.tensors.items():
        for part, value in parts.items():
            assert torch.equal(together.tensors[name][part][[0, 2]], value[[2, 0]])
            assert rows[0].tensors[name][part].untyped_storage().nbytes() * 3 == value.untyped_storage().nbytes()
    assert stacked([None, None]) is None
