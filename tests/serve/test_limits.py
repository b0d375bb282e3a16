"""What is refused, with which status, and what the message says."""

import asyncio
import json
from typing import Any

import pytest

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.recommender import RequestRecommender

GOOD = {"history": ["i20", "Tale 21"], "request": "more horror", "k": 3}

BAD: dict[str, tuple[object, int, str | None, str]] = {
    "no JSON": (b"{", 400, None, 'not JSON .* Send {"history"'),
    "empty": (b"", 400, None, "not JSON"),
    "no text": (b"\xff\xfe\xfa", 400, None, "not JSON"),
    "deep": (b"[" * 20000, 400, None, "not JSON"),
    "huge number": (b'{"k": ' + b"9" * 6000 + b"}", 400, None, "not JSON"),
    "list": ([1], 400, None, "a JSON list, expected an object"),
    "unknown field": ({**GOOD, "n": 3}, 422, "'n'", "fields not expected: 'n'. There are history, request, before, k"),
    "odd field": (b'{"\\ud800": 1}', 422, "'\\ud800'", "fields not expected"),
    "no history": ({"k": 3}, 422, "history", "found None, expected a list of item ids or titles"),
    "empty history": ({**GOOD, "history": []}, 422, "history", r"found \[\]"),
    "text as history": ({**GOOD, "history": "i20"}, 422, "history", "found 'i20', expected a list"),
    "long history": ({**GOOD, "history": ["i20"] * 31}, 422, "history", "found 31 items, expected at most 30"),
    "unknown item": (
        {**GOOD, "history": ["i20", "Nosuch", 5, "i21"]},
        422,
        "history[1]",
        r"history\[1\]: no item has the item id or title 'Nosuch'; history\[2\]: no item has the item id or title 5\.",
    ),
    "part of a title": ({**GOOD, "history": ["Tale"]}, 422, "history[0]", "no item has the item id or title 'Tale'"),
    "many unknown": ({**GOOD, "history": ["x"] * 30}, 422, "history[0]", "and 20 more"),
    "odd entries": ({**GOOD, "history": [None, True, [1], {"id": 1}]}, 422, "history[0]", "found None.*found True"),
    "long entry": ({**GOOD, "history": ["y" * 1000]}, 422, "history[0]", "'y{79}…"),
    "shared title": ({**GOOD, "history": ["twins"]}, 422, "history[0]", "2 items .* send the item id, of 'i7', 'i8'"),
    "id and title": ({**GOOD, "history": ["i4"]}, 422, "history[0]", "the id of one item and the title of another"),
    "id not there": ({**GOOD, "history": [{"item_id": "Tale 3"}]}, 422, "history[0]", "no item has the item id"),
    "title not there": ({**GOOD, "history": [{"title": "i3"}]}, 422, "history[0]", "no item has the title"),
    "number as request": ({**GOOD, "request": 3}, 422, "request", "found 3, expected a text or null"),
    "long request": ({**GOOD, "request": "a" * 101}, 422, "request", "found 101 characters, expected at most 100"),
    "half a character": (b'{"history": ["i1"], "request": "\\ud800"}', 422, "request", "surrogate"),
    "text as before": ({**GOOD, "before": "more war"}, 422, "before", "found 'more war', expected a list of at most 4"),
    "long before": ({**GOOD, "before": ["a"] * 5}, 422, "before", "found 5 texts, expected a list of at most 4"),
    "number in before": ({**GOOD, "before": ["a", 3]}, 422, r"before[1]", r"before\[1\]: found 3, expected a text"),
    "long text in before": ({**GOOD, "before": ["a" * 101]}, 422, "before[0]", "found 101 characters"),
    "before and no request": ({**GOOD, "request": " ", "before": ["a"]}, 422, "before", "without a request"),
    "an encoder of one request": ({**GOOD, "before": ["a"]}, 422, "before", "reads one request alone"),
    "k is zero": ({**GOOD, "k": 0}, 422, "k", "found 0, expected a whole number from 1 to 20"),
    "k is large": ({**GOOD, "k": 21}, 422, "k", "found 21"),
    "k is true": ({**GOOD, "k": True}, 422, "k", "found True"),
    "k is a fraction": ({**GOOD, "k": 2.0}, 422, "k", "found 2.0"),
    "k is NaN": (b'{"history": ["i1"], "k": NaN}', 422, "k", "found nan"),
    "k is null": ({**GOOD, "k": None}, 422, "k", "found None"),
    "every item": (
        {**GOOD, "history": [{"item_id": f"i{item}"} for item in range(59)] + [99]},
        422,
        "history",
        "holds every item",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(run, serving, recommender: RequestRecommender, name: str) -> None:
    body, status, field, message = BAD[name]

    async def work() -> None:
        limit = 60 if name == "every item" else 30
        async with serving(recommender, history_length=limit, text_length=100, max_k=20, before_length=4) as client:
            reply = await client.post(body)
            assert reply.status == status
            assert reply.json["error"]["field"] == field
            assert pytest.approx(len(reply.body), abs=3000) == 0
            with pytest.raises(AssertionError, match=message):
                raise AssertionError(reply.json["error"]["message"])
            assert (await client.post(GOOD)).status == 200
            assert await client.metric(f'cramer_responses_total{{status="{status}"}}') == 1
            assert await client.metric('cramer_responses_total{status="200"}') == 1

    run(work())


@pytest.mark.parametrize(
    "history",
    [["i20", "i21"], ["tale  20", " TALE 21"], [{"item_id": "i20"}, {"title": "Tale 21"}]],
)
def test_ways_to_name_an_item(run, serving, recommender: RequestRecommender, history: list[Any]) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            expected = await client.post({"history": ["i20", "i21"]})
            assert (await client.post({"history": history})).ids == expected.ids
            by_number = await client.post({"history": [99, {"item_id": 99}, {"item_id": "i4"}, {"title": "i4"}]})
            assert not {"99", "i4", "i9"} & set(by_number.ids)
            assert (await client.post({"history": ["der weg, 2"]})).status == 200

    run(work())


def test_large_bodies(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender, body_bytes=1000) as client:
            fitting = json.dumps(GOOD).encode().ljust(1000)
            assert (await client.post(fitting, headers={"Content-Length": "1000"})).status == 200
            assert (await client.post(b"", chunks=[fitting[:500], fitting[500:], b""])).status == 200
            for headers in ({"Content-Length": "1001"}, {"Content-Length": "9" * 5000}, {}):
                reply = await client.post(b"", chunks=[fitting, b" ", b"never read"], headers=headers)
                assert reply.status == 413
                assert "larger than 1000 bytes" in reply.json["error"]["message"]
                assert reply.headers["connection"] == "close"

    run(work())


def test_late_bodies(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender, body_timeout=0.05) as client:
            never = asyncio.Event()
            reply = await client.call("POST", "/recommend", [], gone=never)
            assert reply.status == 408
            assert "after 0.05 seconds" in reply.json["error"]["message"]

    run(work())


def test_other_paths_and_methods(run, serving, recommender: RequestRecommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            assert (await client.get("/recommend")).status == 405
            assert (await client.get("/else")).status == 404
            health = await client.get("/health")
            assert (health.status, health.json) == (200, {"status": "ok", "items": 60, "adapter": "default"})

    run(work())


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_settings_are_above_zero(value: float) -> None:
    from serve.settings import Settings

    with pytest.raises(ConfigError, match=r"timeout: found .*expected a number above 0\. Seconds after which"):
        Settings(timeout=value)
