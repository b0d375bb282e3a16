"""Thousands of interleaved requests over threads and tasks, with errors thrown in; each against a reference."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.encoders import HashingEncoder

TRAP: ContextVar[bool] = ContextVar("trap", default=False)
TEXTS = [f"request {i}" for i in range(6)]
THREADS, PER_THREAD, TASKS, PER_TASK = 8, 250, 120, 8


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which no ``except Exception`` sees."""


class Unreliable:
    """An encoder that fails on some texts, and never keeps them."""

    name, dim = "unreliable", 16

    def __init__(self) -> None:
        self._inner = HashingEncoder(dim=16)

    def encode(self, texts: Sequence[str]) -> Tensor:
        if any(text.startswith("broken") for text in texts):
            raise RuntimeError("the encoder is away")
        return self._inner.encode(texts)


class Trap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if TRAP.get():
            raise Interrupted
        return x


class Model(nn.Module):
    """A fused encoder of torch's, then linear layers; an error can end the call between two masked layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.up, self.trap, self.down = nn.Linear(8, 16), Trap(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        return self.down(self.trap(torch.relu(self.up(self.encoder(x).mean(1)))))


def make(gate: str) -> RequestMaskModel:
    torch.manual_seed(0)
    config = RequestMaskConfig(
        target_modules=["self_attn", "linear1", "up", "down"], gate=gate, encoder="unreliable", init_weights=False
    )
    masks = inject_request_masks(Model().eval(), config, encoder=Unreliable())
    second = RequestMaskConfig(target_modules=["up", "linear2"], gate="scale", request_dim=16, init_weights=False)
    masks.add_adapter("second", second, encoder=HashingEncoder(dim=16))
    masks.set_adapter(["default", "second"])
    return masks


def forms(text: str) -> list[Any]:
    return [text, [text, None, text], {"default": text}, {"default": [None, text, text], "second": text}]


class Reference:
    """What each request gives, by one thread; the fused kernel runs without gradients alone, so by that too."""

    def __init__(self, masks: RequestMaskModel) -> None:
        self.masks, self.x = masks, torch.linspace(-1, 1, 3 * 4 * 8).reshape(3, 4, 8)
        self.requests: list[Any] = [None, *(form for text in TEXTS for form in forms(text))]
        self.found: list[str] = []  # a Counter could lose counts between threads
        self.expected = {}
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                for number, request in enumerate(self.requests):
                    self.expected[gradients, number] = masks(self.x, request=request).detach()

    def check(self, output: Tensor, gradients: bool, number: int, kind: str) -> None:
        right = torch.equal(output.detach(), self.expected[gradients, number])
        self.found.append(kind if right else f"WRONG {kind}")


def ask(reference: Reference, rng: random.Random) -> None:
    """One request in one of the ways there are, perhaps with an error; then whether anything was left behind."""
    masks, x = reference.masks, reference.x
    number, gradients = rng.randrange(len(reference.requests)), rng.random() < 0.25
    request, way = reference.requests[number], rng.choice(["keyword", "block", "nested", "layer", "body", "encoder"])
    with torch.set_grad_enabled(gradients):
        if way == "keyword":
            reference.check(masks(x, request=request), gradients, number, way)
        elif way == "block":
            with masks.request(request):
                reference.check(masks.model.predict(x), gradients, number, way)
        elif way == "nested":
            inner = rng.randrange(len(reference.requests))
            with masks.request(request):
                with masks.request(reference.requests[inner]):
                    reference.check(masks.model(x), gradients, inner, way)
                reference.check(masks.model.predict(x), gradients, number, way)
        elif way == "layer":
            token = TRAP.set(True)
            try:
                with pytest.raises(Interrupted):
                    masks(x, request=request)
            finally:
                TRAP.reset(token)
        elif way == "body":
            with suppress(Interrupted), masks.request(request):
                reference.check(masks.model(x), gradients, number, way)
                raise Interrupted
        else:
            with masks.request(request):
                with pytest.raises(RuntimeError, match="away"):
                    masks(x, request=f"broken {rng.random()}")
                reference.check(masks.model(x), gradients, number, way)
        reference.check(masks.model.predict(x), gradients, 0, f"frozen after {way}")


@pytest.mark.parametrize("gate", ["low_rank"])
def test_threads(gate: str) -> None:
    reference, errors, barrier = Reference(make(gate)), [], threading.Barrier(THREADS)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        # A new thread's first nn.Linear uses more threads than set_num_threads allows, and rounds otherwise, unless
        # torch has been asked for the number: its own products differ so, without any mask.
        torch.get_num_threads()
        barrier.wait()
        try:
            for _ in range(PER_THREAD):
                ask(reference, rng)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report(reference, errors, 3500)


@pytest.mark.parametrize("gate", ["scale"])
def test_tasks_with_blocks_open_across_await_and_cancellations(gate: str) -> None:
    reference = Reference(make(gate))
    masks, x, cancelled = reference.masks, reference.x, []

    async def one(rng: random.Random) -> None:
        number = rng.randrange(len(reference.requests))
        with masks.request(reference.requests[number]):
            for _ in range(rng.randrange(1, 3)):
                await asyncio.sleep(0)
                with torch.no_grad():
                    reference.check(masks.model.predict(x), False, number, "across await")
            if rng.random() < 0.2:
                found = await asyncio.to_thread(_without_gradients, masks, x)
                reference.check(found, False, number, "to_thread")

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(PER_TASK):
                await one(rng)
                ask(reference, rng)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            with torch.no_grad():
                reference.check(masks.model.predict(x), False, 0, "frozen after cancellation")
            cancelled.append(seed)
            raise

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(work(seed)) for seed in range(TASKS)]
        rng = random.Random(0)
        for task in rng.sample(tasks, TASKS // 5):
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    errors = [result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)]
    assert len(cancelled) > 0
    report(reference, errors, TASKS * PER_TASK)
    with torch.no_grad():
        assert torch.equal(masks.model.predict(x), reference.expected[False, 0])


def _without_gradients(masks: RequestMaskModel, x: Tensor) -> Tensor:
    torch.get_num_threads()  # as in test_threads: until asked, a new thread's first Linear ignores set_num_threads
    with torch.no_grad():
        return masks.model(x)


def report(reference: Reference, errors: list[Any], at_least: int) -> None:
    counts = Counter(reference.found)
    wrong = {kind: count for kind, count in counts.items() if kind.startswith("WRONG")}
    total = sum(counts.values())
    print(f"{total} outputs compared, {sum(wrong.values())} wrong: {dict(counts)}")
    assert errors == []
    assert wrong == {}
    assert total >= at_least
