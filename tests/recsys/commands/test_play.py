"""The command ``cramer-peft play``."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="extra play")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command would serve, and the addresses that it would open in a browser."""
    import uvicorn

    seen: dict[str, Any] = {"opened": []}

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        seen.update(app=self.config.app, address=sockets[0].getsockname())

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(webbrowser, "open", seen["opened"].append)
    return seen


def test_it_listens_on_this_machine_alone_and_opens_the_page(run, hearing: Path, served: dict[str, Any]) -> None:
    ended = run("play", hearing, "--port", 0)
    host, port = served["address"]
    assert host == "127.0.0.1"
    assert (ended.code, served["opened"]) == (0, [f"http://127.0.0.1:{port}/"])
    assert f"The page is at http://127.0.0.1:{port}/" in ended.out
    run("play", hearing, "--port", 0, "--no-browser")
    assert len(served["opened"]) == 1


def test_its_users_are_those_of_the_data(run, made: Path, shop: Path, served: dict[str, Any]) -> None:
    from starlette.testclient import TestClient

    people: list[list[str]] = []
    tables = ["--interactions", shop / "x.inter", "--items", shop / "x.item"]
    for options in ([], ["--data", shop], tables):
        run("play", made, "--port", 0, "--no-browser", *options)
        start = TestClient(served["app"], base_url="http://127.0.0.1").get("/api/start").json()
        people.append([person["name"] for person in start["people"]])
        assert start["examples"]
    assert "Fan of “war”" in people[0]
    assert len(people[1]) == 12
    assert all(name.startswith("User u") for name in people[1])
    assert people[2] == people[1]


def test_tables_that_say_too_little(run, made: Path, shop: Path) -> None:
    for options in (("--items", shop / "x.item"), ("--data", shop, "--interactions", shop / "x.inter")):
        assert "expected --data (a name or a folder) or --interactions" in run("play", made, *options).message


def test_a_port_that_is_taken(run, made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        message = run("play", made, "--port", taken.getsockname()[1], "--no-browser").message
    assert "cannot be used on 127.0.0.1" in message
    assert "--port" in message


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_without_the_extra(run, made: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert "cramer-peft[play]" in run("play", made, "--no-browser").message


def test_other_commands_do_not_import_the_server() -> None:
    code = (
        "import sys, cramer_peft, cramer_peft.recsys.commands.app; "
        "print([name for name in sys.modules if name in ('starlette', 'uvicorn')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_it_runs_until_it_is_interrupted(hearing: Path) -> None:
    command = [sys.executable, "-m", "cramer_peft", "play", str(hearing), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            port = int(running.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/api/start")
            assert json.loads(connection.getresponse().read())["items"] == 30
            connection.close()
            running.send_signal(2)
            assert "Traceback" not in running.communicate(timeout=60)[1]
        finally:
            running.kill()
