"""``torch.compile``: one full graph and no new one for new requests, for every gate, layer and form of a request."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Holder(nn.Module):
    """Calls its one layer, and gives a tensor with rows first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class SelfAttention(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(Holder):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def floats() -> Tensor:
    return torch.randn(3, 5, 8)


LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[], Tensor]]] = {
    "Linear": (lambda: Holder(nn.Linear(8, 6)), ["layer"], floats),
    "Conv1D": (lambda: Holder(Conv1D(6, 8)), ["layer"], floats),
    "Conv1d": (lambda: Holder(nn.Conv1d(5, 7, 3, padding=1)), ["layer"], floats),
    "Conv2d": (lambda: Holder(nn.Conv2d(2, 3, 3)), ["layer"], lambda: torch.randn(3, 2, 6, 6)),
    "Embedding": (lambda: Holder(nn.Embedding(20, 8)), ["layer"], lambda: torch.randint(20, (3, 5))),
    "MultiheadAttention": (lambda: SelfAttention(nn.MultiheadAttention(8, 2, batch_first=True)), ["layer"], floats),
    "TransformerEncoder": (lambda: Holder(_encoder()), ["self_attn", "linear1", "linear2"], floats),
}


def make(layer: str, gate: str, **options: Any) -> RequestMaskModel:
    build, targets, _ = LAYERS[layer]
    config = RequestMaskConfig(
        target_modules=targets,
        request_dim=6,
        gate=gate,
        init_weights=False,
        drop_ratio=0.4 if gate == "topk" else None,  # so that even a few gates are not all kept
        **options,
    )
    return inject_request_masks(build().eval(), config)


@pytest.mark.parametrize("layer", list(LAYERS))
def test_every_layer(layer: str, gate: str) -> None:
    masks, x, counter = make(layer, gate), LAYERS[layer][2](), CompileCounter()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    with torch.no_grad():
        frozen = masks(x)
        for i in range(4):
            vectors = torch.randn(3, 6)
            assert torch.allclose(compiled(x, request=vectors), masks(x, request=vectors), atol=1e-5)
            assert not torch.allclose(compiled(x, request=vectors), frozen, atol=1e-4)
            assert counter.frame_count == 1, f"request {i} was compiled again"
        assert torch.allclose(compiled(x), frozen, atol=1e-6)
        assert counter.frame_count == 2
        compiled(x, request=torch.randn(3, 6))
        assert counter.frame_count == 2


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers(kind: type[nn.Module]) -> None:
    """Dynamo does not trace them of itself; by torch's own setting it does."""
    with torch._dynamo.config.patch(allow_rnn=True):
        config = RequestMaskConfig(target_modules=["layer"], request_dim=6, init_weights=False)
        masks, counter = inject_request_masks(Recurrent(kind(8, 6, batch_first=True)).eval(), config), CompileCounter()
        compiled, x = torch.compile(masks, fullgraph=True, backend=counter), floats()
        with torch.no_grad():
            for _ in range(3):
                vectors = torch.randn(3, 6)
                assert torch.allclose(compiled(x, request=vectors), masks(x, request=vectors), atol=1e-6)
        assert counter.frame_count == 1


def _several(gate: str) -> RequestMaskModel:
    masks = make("TransformerEncoder", gate)
    second = RequestMaskConfig(target_modules=["linear1", "self_attn"], gate="scale", request_dim=6, init_weights=False)
    masks.add_adapter("second", second)
    masks.set_adapter(["default", "second"])
    return masks


def _with_texts(gate: str) -> RequestMaskModel:
    build, targets, _ = LAYERS["TransformerEncoder"]
    options = {"encoder": "hashing", "encoder_options": {"dim": 6}}
    return inject_request_masks(build().eval(), RequestMaskConfig(target_modules=targets, gate=gate, **options))


def _by_keyword(run: Any, masks: RequestMaskModel, x: Tensor, request: Any) -> Tensor:
    return run(x, request=request)


def _in_a_block(run: Any, masks: RequestMaskModel, x: Tensor, request: Any) -> Tensor:
    with masks.request(request):
        return run(x)


Case = tuple[Callable[[str], RequestMaskModel], Callable[..., Tensor], Callable[[RequestMaskModel, int], Any]]
FORMS: dict[str, Case] = {
    "one vector": (lambda gate: make("TransformerEncoder", gate), _by_keyword, lambda m, i: torch.randn(6)),
    "vectors, block": (lambda gate: make("TransformerEncoder", gate), _in_a_block, lambda m, i: torch.randn(3, 6)),
    "texts, block": (_with_texts, _in_a_block, lambda m, i: [f"text {i}", None, f"other {i}"]),
    "state": (lambda gate: make("TransformerEncoder", gate), _by_keyword, lambda m, i: m.mask_state(torch.randn(3, 6))),
    "state, block": (
        lambda gate: make("TransformerEncoder", gate),
        _in_a_block,
        lambda m, i: m.mask_state(torch.randn(3, 6)),
    ),
    "several adapters": (_several, _by_keyword, lambda m, i: torch.randn(3, 6)),
    "several adapters, by name": (
        _several,
        _by_keyword,
        lambda m, i: {"default": torch.randn(3, 6), "second": torch.randn(3, 6)},
    ),
}


@pytest.mark.parametrize(("form", "gate"), [*((form, "low_rank") for form in FORMS), ("several adapters", "topk")])
def test_every_form_of_a_request(form: str, gate: str) -> None:
    build, call, make_request = FORMS[form]
    masks, x, counter = build(gate), floats(), CompileCounter()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    with torch.no_grad():
        for i in range(4):
            request = make_request(masks, i)
            expected = call(masks, masks, x, request)
            assert torch.allclose(call(compiled, masks, x, request), expected, atol=1e-5)
        assert counter.frame_count == 1
        assert torch.allclose(compiled(x, request=None), masks(x, request=None), atol=1e-6)


def test_a_stored_default_request(gate: str) -> None:
    masks = make("Linear", gate, default_request=[1.0, -1.0, 0.5, 2.0, 0.0, 0.3])
    x, counter = floats(), CompileCounter()
    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            x = floats()
            assert torch.allclose(compiled(x), masks(x), atol=1e-5)
        assert counter.frame_count == 1
        assert not torch.allclose(compiled(x), masks(x, request=None), atol=1e-4)
        assert torch.allclose(compiled(x, request=None), masks(x, request=None), atol=1e-6)
        vectors = torch.randn(3, 6)
        assert torch.allclose(compiled(x, request=vectors), masks(x, request=vectors), atol=1e-5)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.down(torch.tanh(self.up(x))), x, use_reentrant=False)


def test_checkpoints_inside_a_compiled_model_have_the_request(gate: str) -> None:
    """The gates are inputs of the checkpointed graph there, so that nothing is lost."""
    config = RequestMaskConfig(target_modules=["up", "down"], request_dim=6, gate=gate, init_weights=False)
    masks, x, vectors = inject_request_masks(Checkpointed().eval(), config), floats(), torch.randn(3, 6)
    compiled, found = torch.compile(masks, fullgraph=True, backend="aot_eager"), []
    for run in (lambda: compiled(x, request=vectors), lambda: _without_checkpoint(masks, x, vectors)):
        masks.zero_grad()
        run().square().sum().backward()
        found.append([p.grad.clone() for p in masks.generator.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
    assert found[0][0].abs().sum() > 0


def _without_checkpoint(masks: RequestMaskModel, x: Tensor, vectors: Tensor) -> Tensor:
    with masks.request(vectors):
        return masks.model.down(torch.tanh(masks.model.up(x)))


def test_aot_and_inductor() -> None:
    """With gradients, by the backends that make code; inductor needs a C++ compiler."""
    backends = ["aot_eager", *(["inductor"] if shutil.which("g++") else [])]
    print("backends:", backends)
    for backend in backends:
        torch._dynamo.reset()
        masks, x, counter = make("Linear", "low_rank"), floats(), CompileCounterWithBackend(backend)
        compiled = torch.compile(masks, fullgraph=True, backend=counter)
        for _ in range(3):
            vectors, found = torch.randn(3, 6), []
            for run in (compiled, masks):
                masks.zero_grad()
                output = run(x, request=vectors)
                output.square().sum().backward()
                found.append([output.detach(), *(p.grad.clone() for p in masks.generator.parameters())])
            assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*found, strict=True))
        assert counter.frame_count == 1
