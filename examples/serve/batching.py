"""Brings concurrent calls together into batches for one worker thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class QueueFullError(Exception):
    """As many calls wait as may wait."""


class ClosedError(Exception):
    """The batcher takes or answers no more calls."""


@dataclass(eq=False)
class _Call(Generic[In, Out]):
    item: In
    answer: asyncio.Future[Out]
    since: float


class Batcher(Generic[In, Out]):
    """Gives calls to ``work`` together: as many as wait, once they are enough or the first has waited long enough.

    A call and its answer are one object, so that a caller who leaves frees the place in the queue and shifts
    nobody's row. Where ``work`` fails for a batch, each of its calls is tried alone: the others get their answers.

    Args:
        work: Answers a batch, in its order; called in one thread, the same each time.
        max_batch: Most calls at once.
        max_wait: Seconds that the first call waits for others.
        max_queue: Most calls that wait, beside those being answered.
        on_batch: Told the number of calls of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[In]], Sequence[Out]],
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._waiting: deque[_Call[In, Out]] = deque()
        self._running: list[_Call[In, Out]] = []
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of calls that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether calls are taken and answered."""
        return not self._closed and self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to answer, in the event loop that runs here."""
        self._some, self._enough = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def submit(self, item: In) -> Out:
        """The answer to one call; to cancel it takes it out of the queue.

        Raises:
            QueueFullError: If too many calls wait.
            ClosedError: If the batcher was closed, now or before there was an answer.
        """
        if not self.alive:
            raise ClosedError
        if len(self._waiting) >= self._max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        call: _Call[In, Out] = _Call(item, loop.create_future(), loop.time())
        self._waiting.append(call)
        self._some.set()
        if len(self._waiting) >= self._max_batch:
            self._enough.set()
        try:
            return await call.answer
        except asyncio.CancelledError:
            if call in self._waiting:
                self._waiting.remove(call)
            raise

    async def close(self, seconds: float) -> None:
        """Take no more calls, answer those that wait, and give up on those without an answer after ``seconds``."""
        if self._task is None:
            return
        self._closed = True
        self._some.set()
        self._enough.set()
        await asyncio.wait({self._task}, timeout=seconds)
        self._task.cancel()
        for call in (*self._running, *self._waiting):
            if not call.answer.done():
                call.answer.set_exception(ClosedError())
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while self._waiting or not self._closed:
            self._running = await self._next()
            if self._running:
                self._on_batch(len(self._running))
                await self._answer(self._running)
            self._running = []

    async def _next(self) -> list[_Call[In, Out]]:
        """The calls of the next batch; none where all have left meanwhile."""
        if not self._waiting:
            self._some.clear()
            await self._some.wait()
        if self._waiting and len(self._waiting) < self._max_batch and not self._closed:
            left = self._waiting[0].since + self._max_wait - asyncio.get_running_loop().time()
            if left > 0:
                self._enough.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), left)
        return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    async def _answer(self, calls: list[_Call[In, Out]]) -> None:
        try:
            answers = await self._in_thread([call.item for call in calls])
        except Exception as error:
            if len(calls) == 1:
                if not calls[0].answer.done():
                    calls[0].answer.set_exception(error)
                return
            for call in calls:
                if not call.answer.done():
                    await self._answer([call])
            return
        for call, answer in zip(calls, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)

    async def _in_thread(self, items: list[In]) -> Sequence[Out]:
        answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        if len(answers) != len(items):
            raise RuntimeError(f"the work gave {len(answers)} answers to {len(items)} calls.")
        return answers
