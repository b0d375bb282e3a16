"""Interleaved requests must never see each other, nor what an exception has left."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch

from cramer_peft import inject_request_masks

TEXTS = [f"request {i}" for i in range(8)]


@pytest.fixture
def masks(model, make_config, gate: str):
    return inject_request_masks(model, make_config(gate))


@pytest.fixture
def answers(masks, x) -> dict:
    """What each request must give."""
    with torch.no_grad():
        given = {text: masks(x, request=[text, None, text]) for text in TEXTS}
        return {**given, None: masks(x)}


class Interrupted(BaseException):
    pass


def test_threads(masks, model, x, answers) -> None:
    wrong, done, barrier = [], [], threading.Barrier(4)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        barrier.wait()
        for _ in range(100):
            text = rng.choice([*TEXTS, None])
            requests = None if text is None else [text, None, text]
            way, fail = rng.randrange(4), rng.random() < 0.2
            with torch.set_grad_enabled(rng.random() < 0.3):
                try:
                    if way == 0:
                        output = masks(x, request=requests)
                    elif way == 1:
                        output = model(x, request=requests, fail=Interrupted() if fail else None)
                    else:
                        with masks.request(requests):
                            output = model.predict(x) if way == 2 else model(x)
                            if fail:
                                raise Interrupted
                except Interrupted:
                    output = answers[text]
                if not torch.equal(output.detach(), answers[text]):
                    wrong.append(text)
                if not torch.equal(model.predict(x).detach(), answers[None]):
                    wrong.append("after " + str(text))
                done.append(1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 400
    assert wrong == []


def test_training_in_threads(masks, model, x) -> None:
    """Each thread's backward goes through its own gates."""

    def gradients(text: str) -> list[torch.Tensor]:
        with masks.request([text, None, text]):
            loss = model.predict(x).square().sum()
        return list(torch.autograd.grad(loss, list(masks.generator.parameters())))

    expected = {text: gradients(text) for text in TEXTS}
    with ThreadPoolExecutor(4) as pool:
        jobs = [(text, pool.submit(gradients, text)) for text in TEXTS * 5]
        wrong = [t for t, job in jobs if not all(map(torch.allclose, job.result(), expected[t]))]
    assert wrong == []


def test_asyncio(masks, model, x, answers) -> None:
    async def ask(seed: int) -> list:
        rng, wrong = random.Random(seed), []
        text = rng.choice([*TEXTS, None])
        for _ in range(3):
            try:
                with masks.request(None if text is None else [text, None, text]):
                    for _ in range(rng.randrange(1, 4)):
                        await asyncio.sleep(0)
                        run = model if rng.random() < 0.5 else model.predict
                        with torch.set_grad_enabled(rng.random() < 0.3):  # never across an await
                            if not torch.equal(run(x).detach(), answers[text]):
                                wrong.append(text)
                    if rng.random() < 0.3:
                        raise Interrupted
            except Interrupted:
                pass
            with torch.no_grad():
                if not torch.equal(model.predict(x), answers[None]):
                    wrong.append("after " + str(text))
            await asyncio.sleep(0)
        return wrong

    async def main() -> list:
        return await asyncio.gather(*(ask(seed) for seed in range(150)))

    assert [wrong for wrong in asyncio.run(main()) if wrong] == []


def test_cancelled_tasks(masks, model, x, answers) -> None:
    async def wait_forever(text: str) -> None:
        with masks.request(text):
            await asyncio.Event().wait()

    async def main() -> None:
        tasks = [asyncio.create_task(wait_forever(text)) for text in TEXTS]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(main())
    with torch.no_grad():
        assert torch.equal(model.predict(x), answers[None])
    assert masks.request_context._local.compiled.masks is None


def test_a_pools_worker_sees_a_request_only_by_its_context(masks, model, x, answers) -> None:
    def run() -> torch.Tensor:
        with torch.no_grad():
            return model.predict(x)

    async def main() -> torch.Tensor:
        with masks.request([TEXTS[0], None, TEXTS[0]]):
            return await asyncio.to_thread(run)

    with ThreadPoolExecutor(1) as pool, masks.request([TEXTS[0], None, TEXTS[0]]):
        assert torch.equal(pool.submit(run).result(), answers[None])
        assert torch.equal(pool.submit(copy_context().run, run).result(), answers[TEXTS[0]])
    assert torch.equal(asyncio.run(main()), answers[TEXTS[0]])


def test_two_adapted_models_in_one_thread(make_model, make_config, x) -> None:
    first, second = (inject_request_masks(make_model(seed), make_config()) for seed in (0, 1))
    frozen = first(x), second(x)
    with first.request("a"):
        assert torch.equal(second(x), frozen[1])
        with second.request("b"):
            assert not torch.equal(first(x), frozen[0])
            assert not torch.equal(second(x), frozen[1])
        assert torch.equal(second(x), frozen[1])
    assert torch.equal(first(x), frozen[0])
