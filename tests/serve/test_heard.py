"""Answers say what was heard of their requests."""

import asyncio
from typing import Any

import pytest

from cramer_peft.recsys.recommender import RequestRecommender

HISTORY = ["i20", "i30"]


def test_what_was_heard_and_missed(run, serving, hearing: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(hearing) as client:
            body = {"history": HISTORY, "request": "qwzx vfff comedy from the 1960s, but no horror"}
            heard = (await client.post(body)).json["heard"]
            parts = {(part["kind"], part["wanted"], part["meaning"]) for part in heard["parts"]}
            assert parts == {
                ("attribute", True, "comedy"),
                ("number", True, "year 1960 to 1969"),
                ("attribute", False, "horror"),
            }
            assert set(heard["parts"][0]) == {"text", "kind", "wanted", "meaning", "certainty"}
            assert heard["missed"] == ["qwzx vfff"]
            silent = [(await client.post({"history": HISTORY, "request": text})).json for text in ("hwzqx", None)]
            assert silent[0]["heard"] == {"parts": [], "missed": ["hwzqx"]}
            assert silent[1]["heard"] is None
            assert silent[0]["items"] == silent[1]["items"]

    run(work())


CALLS: list[dict[str, Any]] = [
    {"request": "more comedy"},
    {"request": "less of that", "before": ["something with horror"]},
    {"request": "less of that", "before": ["something with comedy"]},
    {"request": "hwzqx", "before": ["blorpish"]},
    {"request": "from the 1990s", "before": ["comedy", "no horror"]},
    {"request": "not what I usually watch"},
    {"request": None},
]


@pytest.mark.parametrize("max_batch", [1, 32])
def test_lists_and_words_are_those_of_the_recommender(
    run, serving, hearing: RequestRecommender, max_batch: int
) -> None:
    calls = [{**call, "history": history} for history in (HISTORY, ["i1", "i4", "i9"]) for call in CALLS]
    ids = hearing.catalogue.item_ids
    expected = [
        hearing.recommend([ids.index(one) for one in call["history"]], call["request"], before=call.get("before", ()))
        for call in calls
    ]
    assert expected[5].items != expected[0].items

    async def work() -> None:
        async with serving(hearing, max_batch=max_batch, max_wait=0.05) as client:
            for _ in range(2):  # the second time from the cache
                replies = await asyncio.gather(*map(client.post, calls))
                assert [reply.ids for reply in replies] == [[ids[item] for item in one.items] for one in expected]
                for reply, one in zip(replies, expected, strict=True):
                    found = reply.json["heard"]
                    assert (found is None) == (one.heard is None)
                    if one.heard is not None:
                        assert [part["meaning"] for part in found["parts"]] == [p.meaning for p in one.heard.parts]

    run(work())


def test_an_encoder_that_does_not_tell(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            assert (await client.post({"history": HISTORY, "request": "more horror"})).json["heard"] is None

    run(work())
