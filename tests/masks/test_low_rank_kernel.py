"""A weight for each row in place of the frozen one: the same numbers, and the frozen bits where nothing is asked."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.export import RequestModule
from cramer_peft.masks import low_rank_kernel

ROWS, LENGTH, DIM = 5, 40, 3


class Feed(nn.Module):
    """Two layers, one wider and one narrower than its input, the first with a bias."""

    def __init__(self, kind: str = "linear") -> None:
        super().__init__()
        self.up: nn.Module = Conv1D(24, 8) if kind == "conv1d" else nn.Linear(8, 24)
        self.down: nn.Module = Conv1D(8, 24) if kind == "conv1d" else nn.Linear(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def adapted(model: nn.Module, **options):
    config = {
        "target_modules": ["up", "down"],
        "request_dim": DIM,
        "init_weights": False,
        "gate": "low_rank",
        "rank": 2,
    }
    return inject_request_masks(model.eval(), RequestMaskConfig(**{**config, **options})).eval()


@pytest.fixture(params=[1, 200, 500, 10**6])
def at_once(request, monkeypatch) -> int:
    """Entries of the weights made at once: those of one row, of one, of two, of all."""
    monkeypatch.setattr(low_rank_kernel, "_AT_ONCE", request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How often the fast way was taken."""
    made: list[int] = []
    true = low_rank_kernel._each_row
    monkeypatch.setattr(low_rank_kernel, "_each_row", lambda *given: made.append(1) or true(*given))
    return made


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, LENGTH, 8), torch.randn(ROWS, DIM)


def slowly(monkeypatch, run):
    """``run()`` by products for each term, and its gradients by torch's own rules."""
    with monkeypatch.context() as patch:
        patch.setattr(low_rank_kernel, "is_usable", lambda *_: False)
        return run()


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_slow_way_to_rounding(monkeypatch, kind: str, dtype, inputs, at_once: int, calls: list[int]) -> None:
    x, vectors = inputs[0].to(dtype), inputs[1]
    masks = adapted(Feed(kind).to(dtype))
    slow = slowly(monkeypatch, lambda: masks(x, request=vectors))
    assert not calls
    fast = masks(x, request=vectors)
    assert len(calls) == 2
    assert torch.allclose(fast, slow, atol=1e-5)
    assert not torch.allclose(fast, masks(x), atol=1e-2)
    assert torch.allclose(masks(x, request=vectors[1])[1], slow[1], atol=1e-5)
    assert len(calls) == 2  # one request for all needs one weight
    with torch.no_grad():
        assert torch.equal(masks(x, request=vectors), fast)


@pytest.mark.parametrize("requests", ["each row", "some rows", "one for all", "identity"])
def test_gradients(monkeypatch, requests: str, inputs, at_once: int, calls) -> None:
    x, vectors = inputs[0].double(), inputs[1]
    masks = adapted(Feed().double(), init_weights=requests == "identity")
    masks.generator.double()
    asked = {"some rows": [None, *vectors[1:]], "one for all": vectors[0]}.get(requests, vectors)

    def gradients() -> list[Tensor]:
        inner = x.clone().requires_grad_()
        loss = masks(inner, request=asked).square().sum()
        return [*torch.autograd.grad(loss, [inner, *masks.generator.parameters()])]

    expected = slowly(monkeypatch, gradients)
    assert not calls
    for found, right in zip(gradients(), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-6, atol=1e-9)
    assert bool(calls) == (requests in ("each row", "some rows"))


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    x, a, b = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4), (2, 2, 5), (2, 2, 4)))
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def run(*given: Tensor) -> Tensor:
        return low_rank_kernel.low_rank_linear(
            given[0], weight, bias, given[1], given[2], None, lambda x: nn.functional.linear(x, weight, bias)
        )

    given = tuple(value.requires_grad_() for value in (x, a, b))
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def test_rows_without_a_request_are_frozen_and_the_others_do_not_notice(inputs, at_once: int, calls) -> None:
    x, vectors = inputs
    masks = adapted(Feed())
    with torch.no_grad():
        frozen, every = masks(x), masks(x, request=vectors)
        for asked in ([0], [3], [0, 1, 4], [1, 2, 3, 4]):
            mixed = masks(x, request=[vectors[row] if row in asked else None for row in range(ROWS)])
            strengths = torch.tensor([1.0 if row in asked else 0.0 for row in range(ROWS)])
            for output in (mixed, masks(x, request=vectors, request_strength=strengths)):
                for row in range(ROWS):
                    assert torch.equal(output[row], (every if row in asked else frozen)[row])
    assert calls


def test_one_request_at_several_strengths(monkeypatch, inputs, calls) -> None:
    x, vectors = inputs
    masks, strengths = adapted(Feed()), [1.0, 0.0, 0.5, 1.0, -1.0]
    with torch.no_grad():
        fast = masks(x, request=vectors[0], request_strength=strengths)
        assert calls
        slow = slowly(monkeypatch, lambda: masks(x, request=vectors[0], request_strength=strengths))
        assert torch.allclose(fast, slow, atol=1e-5)
        assert torch.equal(fast[1], masks(x)[1])


def test_the_identity_is_the_frozen_model(inputs, calls) -> None:
    x, vectors = inputs
    masks = adapted(Feed(), init_weights=True)
    with torch.no_grad():
        assert torch.equal(masks(x, request=vectors), masks(x))
        assert torch.equal(masks(x, request=vectors[0]), masks(x))
    assert not calls


def test_a_row_with_nan_leaves_the_others_alone(inputs, calls) -> None:
    x, vectors = inputs
    masks = adapted(Feed())
    with torch.no_grad():
        whole = masks(x, request=vectors)
        x[2] = float("nan")
        broken = masks(x, request=[*vectors[:4], None])
    assert broken[2].isnan().all()
    assert torch.equal(broken[[0, 1, 3]], whole[[0, 1, 3]])


@pytest.mark.parametrize("touch", ["forward", "batch_dim", "short", "autocast", "half", "trace", "vmap", "trained"])
def test_what_it_is_not_for(touch: str, inputs, calls) -> None:
    (x, vectors), model, seen = inputs, Feed(), []
    options = {"batch_dim": 1} if touch == "batch_dim" else {}
    if touch == "forward":
        for layer in (model.up, model.down):
            layer.forward = lambda given, call=layer.forward: seen.append(1) or call(given)
    if touch == "half":
        model, x = model.bfloat16(), x.bfloat16()
    x = x[:, :3] if touch == "short" else x
    masks = adapted(model, **options)
    if touch == "trained":
        model.requires_grad_(True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=touch == "autocast"):
        if touch == "batch_dim":
            masks(x.transpose(0, 1), request=vectors)
        elif touch == "vmap":
            torch.func.vmap(lambda given: masks(given, request=vectors))(x[None])
        elif touch == "trace":
            masks.requires_grad_(False)
            torch.jit.trace(lambda given: masks(given, request=vectors), x, check_trace=False)
        else:
            masks(x, request=vectors)
    assert not calls
    assert len(seen) == (2 if touch == "forward" else 0)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 cannot tell a graph to export")
def test_compiled_it_is_one_operator(inputs, calls) -> None:
    x, vectors = inputs
    masks = adapted(Feed())
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(masks, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected = masks(x, request=vectors)
        assert torch.equal(compiled(x, request=vectors), expected)
        state = masks.mask_state([vectors[0], None, *vectors[2:]])
        mixed = compiled(x, request=state)
        assert torch.equal(mixed[1], masks(x)[1])
        assert torch.equal(mixed[2], expected[2])
    torch._dynamo.reset()
    names = [str(node.target) for node in graphs[0].graph.nodes if "low_rank_linear" in str(node.target)]
    assert len(names) == 2


def test_a_program_that_is_exported_holds_no_operator_of_ours(inputs) -> None:
    x, vectors = inputs
    masks = adapted(Feed())
    with torch.no_grad():
        program = torch.export.export(RequestModule(masks), (x, vectors))
        assert "low_rank_linear" not in str(program.graph)
        assert torch.allclose(program.module()(x, vectors), masks(x, request=vectors), atol=1e-5)


def test_the_operator_keeps_torchs_rules() -> None:
    x, weight, bias = torch.randn(3, 20, 8), torch.randn(4, 8), torch.randn(4)
    a, b = torch.randn(3, 2, 4), torch.randn(3, 2, 8)
    for given in ((x, weight, bias, a, b, None), (x, weight, None, a, b, torch.tensor([True, False, True]))):
        torch.library.opcheck(
            low_rank_kernel.traced_low_rank_linear, given, test_utils=["test_schema", "test_faketensor"]
        )
