"""Loads the server with locust, on the loopback address, for a bounded time: ``python -m serve.load FOLDER``.

It starts the server itself and calls it in turns without requests (the frozen model), with requests never sent
before, with requests from a pool, and with hostile clients beside honest ones; at last with more callers than may
wait. Then it stops the server and checks the lists against the model called one at a time. Options that it does not
know are the server's: ``--max-batch 1`` shows what batches are worth.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cramer_peft.recsys.data.catalogue import Catalogue

from .hostile import WAYS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # locust patches sockets, and torch has been imported already
    import gevent
    from locust import FastHttpUser, User
    from locust.env import Environment

K = 10
_WORDS = ("funny", "sad", "dark", "light", "long", "old", "quiet", "loud", "strange", "clever", "brave", "cold", "wild")


@dataclass
class Phase:
    """One kind of load: how its callers ask, and what came of it."""

    name: str
    request: str  # "none", "new" or "pool"
    hostile: bool = False
    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    attacks: int = 0


class Calls:
    """Makes calls about a catalogue; bounded in number."""

    def __init__(self, catalogue: Catalogue, most: int, seed: int = 0) -> None:
        self._ids = catalogue.item_ids
        self._attributes = catalogue.attributes
        self._rng = random.Random(seed)
        self.left = most
        self._texts = 0
        self._pool = [self._text() for _ in range(200)]

    def _text(self) -> str:
        self._texts += 1
        wanted, unwanted = self._rng.sample(self._attributes, 2)
        return f"{self._rng.choice(_WORDS)} {wanted}, no {unwanted} please ({self._texts})"

    def make(self, kind: str) -> dict[str, Any]:
        """A call: a random history, and a request of that kind."""
        history = self._rng.sample(self._ids, self._rng.randint(5, 50))
        request = {"none": lambda: None, "new": self._text, "pool": lambda: self._rng.choice(self._pool)}[kind]()
        return {"history": [{"item_id": item_id} for item_id in history], "request": request, "k": K}


def _ids(items: list[dict[str, str]]) -> list[str]:
    return [item["item_id"] for item in items]


def run_phase(phase: Phase, calls: Calls, port: int, users: int, seconds: float) -> None:
    """Add to a phase what some seconds of it bring."""

    def ask(user: Any) -> None:
        if calls.left <= 0:
            gevent.sleep(0.1)
            return
        calls.left -= 1
        body = calls.make(phase.request)
        started = time.perf_counter()
        with user.client.post("/recommend", json=body, catch_response=True) as response:
            took = (time.perf_counter() - started) * 1000
            response.success()
        status = int(response.status_code)
        phase.statuses[status] = phase.statuses.get(status, 0) + 1
        if status == 200:
            phase.milliseconds.append(took)
            answered = {"history": _ids(body["history"]), "items": _ids(response.json()["items"])}
            phase.answers.append({**body, **answered})
        elif status == 503:
            gevent.sleep(0.05)  # less than Retry-After says: these callers are impatient

    def attack(_: Any) -> None:
        way = random.choice(WAYS)
        phase.attacks += 1
        if not way(("127.0.0.1", port), json.dumps(calls.make("new")).encode()):
            phase.unexpected.append(way.__name__)
        gevent.sleep(0.01)

    classes = [type("Caller", (FastHttpUser,), {"tasks": [ask], "fixed_count": users})]
    if phase.hostile:
        classes.append(type("Attacker", (User,), {"tasks": [attack], "fixed_count": 4}))
    environment = Environment(user_classes=classes, host=f"http://127.0.0.1:{port}")
    runner = environment.create_local_runner()
    started = time.perf_counter()
    runner.start(users + 4 * phase.hostile, spawn_rate=1000)
    gevent.sleep(seconds)
    phase.seconds += time.perf_counter() - started
    runner.quit()


def fetched(port: int, path: str) -> str:
    """A page of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        return str(response.read().decode())


def start_server(folder: Path, port: int, options: list[str]) -> subprocess.Popen[bytes]:
    """The server in a process of its own, once it answers."""
    server = subprocess.Popen([sys.executable, "-m", "serve", str(folder), "--port", str(port), *options])
    for _ in range(600):
        try:
            fetched(port, "/health")
            return server
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the server did not start.")


def table(phases: list[Phase]) -> str:
    """What came of the phases, in Markdown."""
    lines = [
        "| Callers ask | lists | per second | median | 95% | 99% | 503 |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for phase in phases:
        cuts = statistics.quantiles(phase.milliseconds or [0.0, 0.0], n=100)
        times = " | ".join(f"{cuts[percent - 1]:.0f} ms" for percent in (50, 95, 99))
        count, refused = len(phase.milliseconds), phase.statuses.get(503, 0)
        lines.append(f"| {phase.name} | {count:,} | {count / phase.seconds:.0f} | {times} | {refused:,} |")
    return "\n".join(lines)


def checked(folder: Path, phases: list[Phase], most: int) -> str:
    """The verdict of ``serve.check`` on answers of all phases, in a process that locust has not patched."""
    answers = [answer for phase in phases for answer in phase.answers]
    answers = random.Random(0).sample(answers, min(most, len(answers)))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "answers.jsonl"
        file.write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
        command = [sys.executable, "-m", "serve.check", str(folder), str(file)]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def main() -> None:
    """Run all phases and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m serve.load", description=__doc__)
    parser.add_argument("folder", type=Path, help="What `cramer-peft demo` wrote.")
    parser.add_argument("--users", type=int, default=16, help="Callers at once, each waiting for its answer.")
    parser.add_argument("--crowd", type=int, default=400, help="Callers at once in the last phase.")
    parser.add_argument("--seconds", type=float, default=2.5, help="Length of each turn; the last is twice as long.")
    parser.add_argument("--turns", type=int, default=4, help="Turns of each phase but the last.")
    parser.add_argument("--most", type=int, default=50_000, help="Most calls in all.")
    parser.add_argument("--check", type=int, default=5000, help="Most lists that are checked.")
    given, options = parser.parse_known_args()
    logging.getLogger("locust").setLevel(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    calls = Calls(Catalogue.load(given.folder / "catalogue.json"), given.most)
    frozen, new, pool = Phase("nothing (frozen)", "none"), Phase("new texts", "new"), Phase("200 texts", "pool")
    hostile, crowd = Phase("new texts, 4 hostile clients", "new", hostile=True), Phase("new texts, a crowd", "new")
    server = start_server(given.folder, port, options)
    try:
        for _ in range(given.turns):
            for phase in (frozen, new, pool, hostile):
                run_phase(phase, calls, port, given.users, given.seconds)
        run_phase(crowd, calls, port, given.crowd, 2 * given.seconds)
        metrics = fetched(port, "/metrics")
    finally:
        server.send_signal(signal.SIGTERM)
        stopped = server.wait(30)
    phases = [frozen, new, pool, hostile, crowd]
    print(table(phases))
    statuses = {phase.name: phase.statuses for phase in phases if set(phase.statuses) - {200}}
    print(f"all statuses where some are not 200: {statuses or 'none'}; the server ended with {stopped}")
    print(f"hostile calls: {hostile.attacks}, of them answered otherwise than expected: {hostile.unexpected or 'none'}")
    counts = r"^cramer_(?:cache|vanished_t|waiting|batch_rows_[cs][ou][um])\S* .*$"
    print("\n".join(re.findall(counts, metrics, re.MULTILINE)))
    print(f"lists against the model called one at a time: {checked(given.folder, phases, given.check)}")


if __name__ == "__main__":
    main()
