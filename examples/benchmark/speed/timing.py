"""Time calls in pairs, each beside one of the frozen model, so that other work on the machine slows both."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmark.speed.device import synchronise

SHORTEST = 0.01  # seconds; shorter calls are repeated until they take this long


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Row:
    """One way to run the model.

    Attributes:
        name: The name in the report.
        run: Makes one call; its argument is the return value of ``prepare``.
        against: Name of the row that it is compared to.
        prepare: Makes the argument of one call; not timed.
        around: Makes a context for all calls of a turn; entering it is not timed.
    """

    name: str
    run: Callable[[Any], object]
    against: str = "frozen"
    prepare: Callable[[], Any] = _nothing
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Timing:
    """The times of one row.

    Attributes:
        row: Its name.
        against: The row it was paired with.
        seconds: Time of one call, per round.
        ratios: Time of one call over that of its pair, per round.
    """

    row: str
    against: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def clock_of(clock: str, device: str = "cpu") -> Callable[[], float]:
    """Return a clock, in seconds; on a CUDA device it waits before each reading until all work there is done."""
    now = CLOCKS[clock]
    if device == "cpu":
        return now

    def after_all_work() -> float:
        synchronise(device)
        return now()

    return after_all_work


def measure(
    rows: Sequence[Row],
    rounds: int = 15,
    warm_up: int = 3,
    seed: int = 0,
    clock: str = "wall",
    device: str = "cpu",
) -> list[Timing]:
    """Time each row in pairs with the row it is compared to, all rows in every round, in random order.

    Args:
        rows: The rows; those named by ``against`` must be among them.
        rounds: Number of pairs of each row.
        warm_up: Number of calls of each row before the first round.
        seed: Seed of the order.
        clock: ``"wall"``, or ``"cpu"``: the processor time of all threads of this process, which other processes
            disturb less; with several threads it is not the duration of a call.
        device: Device of the rows: ``"cpu"`` or ``"cuda"``. On CUDA the calls of one turn are queued, and the clock is
            read when the device has done them all.

    Returns:
        One timing for each row, in the order given. A row that is compared to itself shows the noise.
    """
    now = clock_of(clock, device)
    by_name = {row.name: row for row in rows}
    timings = [Timing(row.name, row.against) for row in rows]
    order = random.Random(seed)
    with torch.no_grad():
        repeats = {row.name: _repeats(row, warm_up, now) for row in rows}
        was_on = gc.isenabled()
        gc.disable()
        gc.collect()
        gc.freeze()  # so that the collection after each round only looks at new objects
        try:
            for _ in range(rounds):
                for timing in order.sample(timings, len(timings)):
                    own, other = by_name[timing.row], by_name[timing.against]
                    times = repeats[own.name]
                    if order.random() < 0.5:
                        first, second = _time(own, times, now), _time(other, times, now)
                    else:
                        second, first = _time(other, times, now), _time(own, times, now)
                    timing.seconds.append(first)
                    timing.ratios.append(first / second)
                gc.collect()
        finally:
            gc.unfreeze()
            if was_on:
                gc.enable()
    return timings


def _repeats(row: Row, warm_up: int, now: Callable[[], float]) -> int:
    """Return the number of calls of one turn."""
    seconds = min(_time(row, 1, now) for _ in range(max(warm_up, 1)))
    return max(1, round(SHORTEST / max(seconds, 1e-6)))


def _time(row: Row, times: int, now: Callable[[], float]) -> float:
    """Return the seconds of one call, averaged over ``times`` calls in a row."""
    arguments = [row.prepare() for _ in range(times)]
    with row.around():
        start = now()
        for argument in arguments:
            row.run(argument)
        return (now() - start) / times
