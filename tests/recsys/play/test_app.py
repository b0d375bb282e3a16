"""The page's routes, for its own calls and for those of others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from cramer_peft.errors import RequestError
from cramer_peft.recsys.play.app import make_app
from cramer_peft.recsys.recommender import RequestRecommender

HERE = "http://127.0.0.1:8765"
CALL = {"history": ["i3", "i7"], "requests": ["something like Toy Story, but no horror"], "strength": 1}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(recommender: RequestRecommender) -> TestClient:
    return TestClient(make_app(recommender, "films", examples=["no horror"]), base_url=HERE)


@pytest.mark.parametrize(("path", "kind"), [("/", "html"), ("/play.css", "css"), ("/play.js", "javascript")])
def test_the_files_may_load_nothing_from_elsewhere(client: TestClient, path: str, kind: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert kind in response.headers["content-type"]
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", ""])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/start", headers={"host": host}).status_code == 400
    assert client.get("/api/start", headers={"host": "localhost:8765"}).status_code == 200


@pytest.mark.parametrize("path", ["/page/index.html", "/..%2fapp.py", "/%2e%2e/app.py", "/app.py", "/etc/passwd"])
def test_no_other_file_is_sent(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_start_offers_people_and_examples(client: TestClient) -> None:
    start = client.get("/api/start").json()
    assert (start["name"], start["items"], start["examples"]) == ("films", 40, ["no horror"])
    assert "Fan of “Comedy”" in [person["name"] for person in start["people"]]
    assert all(person["history"] for person in start["people"])


def test_the_lists_are_those_of_the_recommender(client: TestClient, recommender: RequestRecommender) -> None:
    lists = client.post("/api/recommend", json={**CALL, "requests": [*CALL["requests"], "zorblat"]}).json()
    expected = recommender.recommend([3, 7], CALL["requests"][0])
    ids = recommender.catalogue.item_ids
    assert [item["id"] for item in lists["history"]] == ["i3", "i7"]
    assert [item["id"] for item in lists["before"]] == [ids[item] for item in expected.frozen_items]
    answer, other = lists["answers"]
    assert [item["id"] for item in answer["items"]] == [ids[item] for item in expected.items]
    assert expected.came
    assert [item["id"] for item in answer["items"] if item["came"]] == [ids[item] for item in expected.came]
    assert [item["id"] for item in answer["went"]] == [ids[item] for item in expected.went]
    heard = [(part["text"], part["meaning"], part["wanted"]) for part in answer["heard"]["parts"]]
    assert heard == [("toy story", "Toy Story (1982)", True), ("horror", "horror", False)]
    assert other["heard"] == {"parts": [], "missed": ["zorblat"]}
    assert [item["id"] for item in other["items"]] == [item["id"] for item in lists["before"]]


def test_strength_zero_is_the_list_without_a_request(client: TestClient) -> None:
    lists = client.post("/api/recommend", json={**CALL, "strength": 0}).json()
    assert [item["id"] for item in lists["answers"][0]["items"]] == [item["id"] for item in lists["before"]]


def test_an_error_of_one_request_leaves_the_others(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    recommend = RequestRecommender.recommend

    def failing(self: RequestRecommender, history: Any, request: Any, *rest: Any, **named: Any) -> Any:
        if request == "bad":
            raise RequestError("request: this one is bad. Say it otherwise.")
        return recommend(self, history, request, *rest, **named)

    monkeypatch.setattr(RequestRecommender, "recommend", failing)
    bad, good = client.post("/api/recommend", json={**CALL, "requests": ["bad", "comedy"]}).json()["answers"]
    assert bad == {"request": "bad", "error": "request: this one is bad. Say it otherwise."}
    assert good["items"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"[" * 30_000,
        b"\xff",
        b'{"history": ["i3"]}',
        b'"history requests strength"',
        *(
            json.dumps({**CALL, **change}).encode()
            for change in (
                {"history": []},
                {"history": "i3"},
                {"history": ["nothing"]},
                {"history": [3]},
                {"history": [{"id": "i3"}]},
                {"history": ["\ud800"]},
                {"history": [f"i{item}" for item in range(40)]},
                {"requests": "comedy"},
                {"requests": [1]},
                {"requests": None},
                {"requests": ["comedy"] * 5},
                {"requests": ["a" * 1001]},
            )
        ),
    ],
    ids=lambda body: body[:60].decode(errors="replace"),
)
def test_calls_that_cannot_be_answered_say_why(client: TestClient, body: bytes) -> None:
    response = client.post("/api/recommend", content=body, headers=JSON)
    assert response.status_code == 422
    assert len(response.json()["error"]) > 20
    assert "docs/errors.md" not in response.text


@pytest.mark.parametrize("strength", ["1", [1, 2], {}, float("nan"), float("inf"), 10**400, 1e38], ids=repr)
def test_an_impossible_strength_is_told_beside_its_request(client: TestClient, strength: object) -> None:
    body = json.dumps({**CALL, "strength": strength})
    response = client.post("/api/recommend", content=body, headers=JSON)
    (answer,) = response.json()["answers"]
    assert set(answer) == {"request", "error"}


@pytest.mark.parametrize("text", ["", "   ", "\ud800", "a" * 1000, "a " * 500, "\0", "{{7*7}}", "🎬" * 500])
def test_any_text_is_a_request(client: TestClient, text: str) -> None:
    response = client.post("/api/recommend", content=json.dumps({**CALL, "requests": [text]}), headers=JSON)
    assert response.status_code == 200
    assert len(response.json()["answers"]) == 1


def test_what_forms_of_other_sites_can_send_is_refused(client: TestClient) -> None:
    response = client.post("/api/recommend", content=json.dumps(CALL), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert client.post("/api/recommend", content=b" " * 70_000, headers=JSON).status_code == 413
    assert client.get("/api/recommend").status_code == 405


def test_titles_are_suggested_the_whole_beginnings_first(client: TestClient) -> None:
    def titles(text: str) -> list[str]:
        return [item["title"] for item in client.get("/api/titles", params={"text": text}).json()]

    assert titles("toy") == ["Toy Story", "Toy Story 2"]
    assert titles("  STORY  ") == ["Toy Story", "Toy Story 2"]
    assert titles("<script>") == ["<script>window.harmed = 1</script>"]
    assert titles("tale 1")[0] == "Tale 10 of drama"
    assert len(titles("tale")) == 8
    assert titles("") == titles("zzz") == titles("x" * 5000) == []


def test_a_surprise_is_a_history_that_can_be_used(client: TestClient) -> None:
    drawn = [client.get("/api/surprise").json()["history"] for _ in range(5)]
    assert len({item["id"] for history in drawn for item in history}) > 5
    call = {**CALL, "history": [item["id"] for item in drawn[0]]}
    assert client.post("/api/recommend", json=call).status_code == 200
