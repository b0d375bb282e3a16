"""Clients that leave, come too many at once, or wait too long; and a server that stops."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from cramer_peft.recsys.recommender import RequestRecommender

BODY = {"history": ["i20", "i30"], "request": "more horror", "k": 5}


class Gate:
    """Holds the model back until it is opened, and notes how many rows each forward has."""

    def __init__(self, recommender: RequestRecommender, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.rows: list[int] = []
        forward = recommender.masks.model.forward

        def held(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith("model"):
                self.rows.append(len(args[0]))
                assert self.open.wait(30)
            return forward(*args, **kwargs)

        monkeypatch.setattr(recommender.masks.model, "forward", held)


@pytest.fixture
def gate(recommender: RequestRecommender, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate(recommender, monkeypatch)
    yield held
    held.open.set()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_clients_that_leave_hold_no_place_and_shift_no_row(run, serving, recommender, gate: Gate) -> None:
    bodies = [{**BODY, "history": [f"i{20 + index}"], "request": f"text {index}"} for index in range(9)]
    ids = recommender.catalogue.item_ids
    expected = [[ids[i] for i in recommender.recommend([20 + index], f"text {index}", k=5).items] for index in range(9)]

    async def work() -> None:
        async with serving(recommender, max_batch=4, max_queue=4) as client:
            gone = [asyncio.Event() for _ in bodies]
            calls = [asyncio.ensure_future(client.post(*pair)) for pair in zip(bodies[:4], gone[:4], strict=True)]
            await until(lambda: gate.rows == [4])
            calls += [asyncio.ensure_future(client.post(*pair)) for pair in zip(bodies[4:8], gone[4:8], strict=True)]
            await asyncio.sleep(0.02)
            assert await client.metric("cramer_waiting") == 4
            refused = await client.post(bodies[8])
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert "too many calls wait" in refused.json["error"]["message"]
            for index in (1, 4, 6):
                gone[index].set()
            await asyncio.wait([calls[index] for index in (1, 4, 6)])
            assert await client.metric("cramer_waiting") == 2
            calls.append(asyncio.ensure_future(client.post(bodies[8])))
            await asyncio.sleep(0.02)
            gate.open.set()
            replies = await asyncio.gather(*calls)
            for index, reply in enumerate(replies):
                assert reply.status == 499 if index in (1, 4, 6) else reply.ids == expected[index]
            assert gate.rows == [4, 3]
            assert await client.metric("cramer_vanished_total") == 3
            assert await client.metric('cramer_responses_total{status="503"}') == 1
            assert await client.metric('cramer_responses_total{status="200"}') == 6

    run(work())


def test_one_that_leaves_while_it_sends(run, serving, recommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            gone = asyncio.Event()
            gone.set()
            assert (await client.call("POST", "/recommend", [], gone)).status == 499
            assert await client.metric("cramer_vanished_total") == 1

    run(work())


def test_one_that_waits_too_long(run, serving, recommender, gate: Gate) -> None:
    async def work() -> None:
        async with serving(recommender, max_batch=1, timeout=0.05) as client:
            replies = await asyncio.gather(client.post(BODY), client.post(BODY))
            for reply in replies:
                assert (reply.status, reply.headers["retry-after"]) == (504, "1")
                assert "no answer within 0.05 seconds" in reply.json["error"]["message"]
            assert await client.metric("cramer_waiting") == 0
            gate.open.set()
            assert (await client.post(BODY)).status == 200

    run(work())


def test_a_model_that_fails_is_the_servers_fault(run, serving, recommender, monkeypatch) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            with monkeypatch.context() as patch:
                patch.setattr(recommender.masks.model, "forward", lambda *_, **__: 1 / 0)
                reply = await client.post(BODY)
            assert reply.status == 500
            assert b"ZeroDivision" not in reply.body
            assert (await client.post(BODY)).status == 200

    run(work())


def test_a_stopped_app_says_so(run, serving, recommender) -> None:
    async def work() -> None:
        async with serving(recommender) as client:
            pass
        health, reply = await client.get("/health"), await client.post(BODY)
        assert (health.status, health.json["status"]) == (503, "stopped")
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")

    run(work())


# --- through sockets


@contextmanager
def listening(recommender: RequestRecommender, **settings: Any) -> Iterator[Any]:
    """A server on a free port of the loopback address, in a thread; yields (server, port, thread)."""
    from serve.app import make_app
    from serve.server import make_server
    from serve.settings import Settings

    given = Settings(**settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(make_app(recommender, given), given, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server.started
        try:
            yield server, listener.getsockname()[1], thread
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def post(port: int, body: object = BODY) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/recommend", json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def raw(length: int, body: bytes) -> bytes:
    return b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (length, body)


def metrics(port: int) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_sockets_that_close_in_every_phase(recommender: RequestRecommender, gate: Gate) -> None:
    body = json.dumps(BODY).encode()
    with listening(recommender, max_batch=2, body_bytes=1000) as (_, port, _):
        for sent in (b"", b"POST /rec", raw(len(body), body[:20]), raw(len(body), body)):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)
                time.sleep(0.02)
        deadline = time.monotonic() + 30
        while "cramer_vanished_total 2.0" not in metrics(port) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "cramer_vanished_total 2.0" in metrics(port)
        gate.open.set()
        assert post(port)[0] == 200


def test_a_large_body_through_a_socket(recommender: RequestRecommender) -> None:
    with listening(recommender, body_bytes=1000) as (_, port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(raw(10**9, b" " * 5000))
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 413")
        assert b"larger than 1000 bytes" in received
        assert post(port)[0] == 200


def test_stopping_answers_those_who_wait(recommender: RequestRecommender, gate: Gate) -> None:
    replies: list[tuple[int, Any]] = []
    with listening(recommender, max_batch=1) as (server, port, thread):
        callers = [threading.Thread(target=lambda: replies.append(post(port))) for _ in range(3)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 30
        while "cramer_waiting 2.0" not in metrics(port) and time.monotonic() < deadline:
            time.sleep(0.005)
        server.should_exit = True
        time.sleep(0.1)
        assert thread.is_alive()
        gate.open.set()
        for caller in callers:
            caller.join(30)
        thread.join(30)
        assert [status for status, _ in replies] == [200] * 3
        with pytest.raises(OSError):  # noqa: PT011 (refused or reset)
            post(port)


@pytest.mark.parametrize("way", range(7))
def test_the_hostile_clients_of_the_load_script(recommender: RequestRecommender, way: int) -> None:
    from serve.hostile import WAYS

    assert len(WAYS) == 7
    with listening(recommender) as (_, port, _):
        for _ in range(3):
            assert WAYS[way](("127.0.0.1", port), json.dumps(BODY).encode())
        assert post(port)[0] == 200
