"""The batcher alone: batches, cancelled calls, a bounded queue, failures, closing."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from serve.batching import Batcher, ClosedError, QueueFullError


class Work:
    """Doubles numbers, once it may; 13 fails."""

    def __init__(self, held: bool = False) -> None:
        self.may = threading.Event()
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        if not held:
            self.may.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.current_thread().name)
        assert self.may.wait(30)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


async def started(work: Callable[[list[int]], list[int]], **limits: float) -> Batcher[int, int]:
    batcher: Batcher[int, int] = Batcher(work, **{"max_batch": 4, "max_wait": 0.01, "max_queue": 8, **limits})
    batcher.start()
    return batcher


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_batches_hold_calls_in_order(run) -> None:
    async def go() -> None:
        work = Work()
        batcher = await started(work)
        assert await asyncio.gather(*map(batcher.submit, range(7))) == [0, 2, 4, 6, 8, 10, 12]
        assert work.batches == [[0, 1, 2, 3], [4, 5, 6]]
        assert await batcher.submit(50) == 100
        assert len(work.threads) == 1
        await batcher.close(1)

    run(go())


def test_a_full_batch_does_not_wait(run) -> None:
    async def go() -> None:
        batcher = await started(Work(), max_wait=1000)
        assert await asyncio.gather(*map(batcher.submit, range(4))) == [0, 2, 4, 6]
        last = asyncio.ensure_future(batcher.submit(5))
        await asyncio.sleep(0.02)
        assert not last.done()
        await batcher.close(1)  # nor does closing
        assert await last == 10

    run(go())


def test_a_full_queue_refuses_and_a_cancelled_call_frees_its_place(run) -> None:
    async def go() -> None:
        work = Work(held=True)
        batcher = await started(work)
        calls = [asyncio.ensure_future(batcher.submit(number)) for number in range(4)]
        await until(lambda: work.batches == [[0, 1, 2, 3]])
        calls += [asyncio.ensure_future(batcher.submit(number)) for number in range(4, 12)]
        await asyncio.sleep(0)
        assert batcher.waiting == 8
        with pytest.raises(QueueFullError):
            await batcher.submit(99)
        for gone in (1, 5, 6):  # one being answered, two that wait
            calls[gone].cancel()
        await until(lambda: batcher.waiting == 6)
        calls.append(asyncio.ensure_future(batcher.submit(12)))
        work.may.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(answer, asyncio.CancelledError) for answer in answers].count(True) == 3
        assert [a for a in answers if isinstance(a, int)] == [0, 4, 6, 8, 14, 16, 18, 20, 22, 24]
        assert work.batches == [[0, 1, 2, 3], [4, 7, 8, 9], [10, 11, 12]]
        await batcher.close(1)

    run(go())


def test_all_callers_leave(run) -> None:
    async def go() -> None:
        work = Work()
        batcher = await started(work, max_wait=0.03)
        call = asyncio.ensure_future(batcher.submit(1))
        await asyncio.sleep(0.005)
        call.cancel()
        await asyncio.sleep(0.05)
        assert work.batches == []
        assert await batcher.submit(2) == 4
        await batcher.close(1)

    run(go())


def test_the_others_of_a_failed_batch_get_their_answers(run) -> None:
    async def go() -> None:
        work = Work()
        batcher = await started(work)
        answers = await asyncio.gather(*map(batcher.submit, (12, 13, 14)), return_exceptions=True)
        assert answers[0::2] == [24, 28]
        assert isinstance(answers[1], ValueError)
        assert batcher.alive
        await batcher.close(1)

    run(go())


def test_work_that_loses_a_row_answers_nobody_wrongly(run) -> None:
    async def go() -> None:
        batcher = await started(lambda items: items[1:] if len(items) > 1 else items)
        assert await asyncio.gather(*map(batcher.submit, range(3))) == [0, 1, 2]
        await batcher.close(1)

    run(go())


def test_closing_answers_what_waits_and_takes_no_more(run) -> None:
    async def go() -> None:
        work = Work(held=True)
        batcher = await started(work)
        calls = [asyncio.ensure_future(batcher.submit(number)) for number in range(8)]
        await until(lambda: bool(work.batches))
        closing = asyncio.ensure_future(batcher.close(30))
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError):
            await batcher.submit(9)
        assert not batcher.alive
        work.may.set()
        await closing
        assert await asyncio.gather(*calls) == [2 * number for number in range(8)]

    run(go())


def test_closing_gives_up_on_work_that_hangs(run) -> None:
    async def go() -> None:
        work = Work(held=True)
        batcher = await started(work)
        calls = [asyncio.ensure_future(batcher.submit(number)) for number in range(6)]
        await until(lambda: bool(work.batches))
        await batcher.close(0.01)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(answer, ClosedError) for answer in answers)
        work.may.set()

    run(go())


def test_one_that_was_never_started(run) -> None:
    async def go() -> None:
        batcher: Batcher[int, int] = Batcher(Work(), 4, 0.01, 8)
        assert not batcher.alive
        with pytest.raises(ClosedError):
            await batcher.submit(1)
        await batcher.close(1)

    run(go())
