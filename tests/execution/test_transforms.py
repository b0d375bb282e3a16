"""Calls under torch.func's transforms, and traces, which would keep the requests of one call."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from cramer_peft import inject_request_masks
from cramer_peft.errors import UnsupportedError
from cramer_peft.export import RequestModule

ROWS, WIDTH, DIM = 3, 4, 5


@pytest.fixture
def masks(gate: str, make_config):
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, WIDTH)).eval()
    return inject_request_masks(model, make_config(gate, target_modules=["0", "2"], request_dim=DIM)).eval()


def loss(masks):
    def of_a_row(parameters: dict[str, Tensor], x: Tensor, vector: Tensor) -> Tensor:
        return functional_call(masks, parameters, (x[None],), {"request": vector[None]}).pow(2).sum()

    return of_a_row


def test_gradients_of_each_row_by_vmap(masks) -> None:
    x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
    own = {key: value.detach() for key, value in masks.named_parameters() if value.requires_grad}
    found = vmap(grad(loss(masks)), (None, 0, 0))(own, x, vectors)
    for row in range(ROWS):
        masks.zero_grad()
        masks(x[row : row + 1], request=vectors[row : row + 1]).pow(2).sum().backward()
        for key, value in masks.named_parameters():
            if value.requires_grad:
                assert torch.allclose(found[key][row], value.grad, rtol=1e-4, atol=1e-5)
    assert any(bool(value.abs().sum() > 0) for value in found.values())


def test_vmap_and_jacobian_of_the_vectors(masks) -> None:
    x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
    expected = masks(x, request=vectors)
    found = vmap(lambda row, vector: masks(row[None], request=vector[None])[0])(x, vectors)
    assert torch.allclose(found, expected, atol=1e-5)
    shared = vmap(lambda row: masks(row[None], request=vectors[0])[0])(x)
    assert torch.allclose(shared, masks(x, request=vectors[0]), atol=1e-5)
    assert jacrev(lambda vector: masks(x, request=vector))(vectors[0]).shape == (ROWS, WIDTH, DIM)


def test_vmap_over_strengths(make_config) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).eval()
    masks = inject_request_masks(model, make_config(target_modules=["0"], request_dim=DIM)).eval()
    x, vector = torch.randn(ROWS, WIDTH), torch.randn(DIM)
    strengths = torch.tensor([0.0, 0.5, 1.0])
    found = vmap(lambda strength: masks(x, request=vector, request_strength=strength.expand(ROWS)))(strengths)
    for strength, output in zip(strengths, found, strict=True):
        assert torch.allclose(output, masks(x, request=vector, request_strength=float(strength)), atol=1e-5)


TRACERS = {
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,), check_trace=False),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
}
tracers = pytest.mark.parametrize("tracer", TRACERS)


@tracers
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_that_would_not_follow_requests_is_refused(masks, tracer: str, snapshot) -> None:
    x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
    before, frozen = snapshot(masks.model), masks(x)
    trace = TRACERS[tracer]
    with pytest.raises(UnsupportedError, match=r"'0' is being traced.*RequestModule"):
        trace(masks.model, x)
    assert before.differences(masks.model) == []
    with masks.disable_adapter():
        traced = trace(masks.model, x)
    assert torch.equal(traced(x), frozen)
    assert torch.equal(masks(x), frozen)
    assert not torch.allclose(masks(x, request=vectors), frozen, atol=1e-4)
    masks.unload()
    assert torch.equal(trace(masks.model, x)(x), frozen)


@tracers
@pytest.mark.parametrize("given", ["default", "block"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_one_request_is_refused_too(masks, tracer: str, given: str, trained: bool) -> None:
    x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
    masks.set_requires_grad("default", trained)
    if given == "default":
        masks.set_default_request(vectors[0])
    block = masks.request(vectors) if given == "block" else nullcontext()
    with block, pytest.raises(UnsupportedError, match="is being traced"):
        TRACERS[tracer](masks.model, x)


@tracers
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_a_layer_further_in_is_refused(masks, tracer: str) -> None:
    with pytest.raises(UnsupportedError, match="'2' is being traced"):
        TRACERS[tracer](nn.Sequential(masks.model[2]), torch.randn(ROWS, 6))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_request_module_can_be_traced(masks) -> None:
    x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
    traced = torch.jit.trace(RequestModule(masks), (x, vectors), check_trace=False)
    for _ in range(2):
        x, vectors = torch.randn(ROWS, WIDTH), torch.randn(ROWS, DIM)
        assert torch.allclose(traced(x, vectors), masks(x, request=vectors), atol=1e-5)
