"""One full graph, and no new one for new requests."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter

from cramer_peft import RequestMaskConfig, inject_request_masks


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", ["vectors", "texts"])
def test_no_recompilation_for_new_requests(model, make_config, gate: str, x, gradients: bool, form: str) -> None:
    masks, counter = inject_request_masks(model, make_config(gate)), CompileCounter()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)

    def requests(i: int):
        return torch.randn(3, 16) if form == "vectors" else [f"text {i}", None, f"other {i}"]

    with torch.set_grad_enabled(gradients):
        for i in range(5):
            given = requests(i)
            if form == "vectors":
                output = compiled(x, request=given)
            else:
                with masks.request(given):
                    output = compiled(x)
            assert torch.allclose(output, masks(x, request=given), atol=1e-6)
            assert output.requires_grad is gradients
            if i == 0:
                frames = counter.frame_count
        assert counter.frame_count == frames == 1
        assert torch.equal(compiled(x), model(x))
        assert counter.frame_count <= 2


def test_gradients_are_those_of_the_eager_run(model, make_config, gate: str, x) -> None:
    masks = inject_request_masks(model, make_config(gate, generator_width=3))
    compiled = torch.compile(masks, fullgraph=True, backend="aot_eager")
    vectors = torch.randn(3, 16)
    found = []
    for run in (masks, compiled):
        masks.zero_grad()
        run(x, request=vectors).square().sum().backward()
        found.append([p.grad.clone() for p in masks.generator.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert found[0][0].abs().sum() > 0


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 cannot tell a graph to export")
@pytest.mark.parametrize("gate", ["scale", "signed", "topk"])
@pytest.mark.parametrize("gradients", [False, True])
def test_without_gradients_gates_are_written_to_memory_once(model, make_config, gate: str, gradients: bool, x) -> None:
    masks, found = inject_request_masks(model, make_config(gate)), []

    def backend(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        found.extend(node.target for node in graph.graph.nodes if node.target == "as_strided")
        return graph

    with torch.set_grad_enabled(gradients):
        compiled = torch.compile(masks, fullgraph=True, backend=backend)
        for vectors in (torch.randn(3, 16), torch.randn(5, 16)):
            rows = x[[0, 1, 2, 0, 1][: len(vectors)]]
            assert torch.equal(compiled(rows, request=vectors), masks(rows, request=vectors))
    assert bool(found) is not gradients


def test_the_model_itself_compiled_with_a_request_block_around(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    frozen = model(x)
    with torch.no_grad():
        for i in range(3):
            with masks.request([f"a {i}", None, "b"]):
                output, expected = compiled(x), model(x)
            assert torch.allclose(output, expected, atol=1e-6)
            assert torch.equal(output[1], frozen[1])
            assert torch.equal(compiled(x), frozen)


def test_a_disabled_adapter_is_the_frozen_model(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config())
    compiled, vectors = torch.compile(masks, fullgraph=True, backend="eager"), torch.randn(3, 16)
    frozen = masks(x)
    masked = compiled(x, request=vectors)
    with masks.disable_adapter():
        assert torch.equal(compiled(x, request=vectors), frozen)
    assert torch.equal(compiled(x, request=vectors), masked)


def test_interleaved_requests_leave_nothing_behind(model, make_config, x) -> None:
    """Blocks of asyncio tasks end in any order; a compiled call after them must not see one."""
    masks = inject_request_masks(model, make_config())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    frozen = model(x)

    async def ask(first: asyncio.Event, second: asyncio.Event) -> None:
        with masks.request("more horror"):
            first.set()
            await second.wait()

    async def main() -> None:
        events = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(ask(events[0], events[1])), asyncio.create_task(ask(events[2], events[2]))]
        await events[0].wait()
        await events[2].wait()
        events[1].set()
        await asyncio.gather(*tasks)

        async def nested() -> None:
            started, stop = asyncio.Event(), asyncio.Event()

            async def outer() -> None:
                with masks.request("a"):
                    started.set()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)

            async def inner() -> None:
                await started.wait()
                with masks.request("b"):
                    await stop.wait()

            tasks = [asyncio.create_task(outer()), asyncio.create_task(inner())]
            await tasks[0]
            stop.set()
            await tasks[1]

        await nested()

    asyncio.run(main())
    assert torch.equal(compiled(x), frozen)


def test_compiled_in_threads(model, make_config, x) -> None:
    masks, counter = inject_request_masks(model, make_config()), CompileCounter()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    requests = torch.randn(8, 3, 16)
    with torch.no_grad():
        expected = [compiled(x, request=given) for given in requests]

        def wrong(thread: int) -> int:
            found = 0
            with torch.no_grad():
                for i in range(50):
                    j = (i * 3 + thread) % 8
                    found += not torch.equal(compiled(x, request=requests[j]), expected[j])
            return found

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(wrong, range(4))) == [0, 0, 0, 0]
    assert counter.frame_count == 1


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="torch 2.6 cannot trace a context manager"
)
def test_a_block_inside_the_compiled_function() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()
    config = RequestMaskConfig(target_modules=["0", "1"], request_dim=5, init_weights=False)
    masks = inject_request_masks(model, config)

    def score(x: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        with masks.request(vectors):
            return model(x)

    x, vectors = torch.randn(3, 4), torch.randn(3, 5)
    with torch.no_grad():
        compiled = torch.compile(score, fullgraph=True, backend="eager")(x, vectors)
        assert torch.allclose(compiled, score(x, vectors), atol=1e-6)
        assert not torch.allclose(compiled, model(x))
