"""``torch.export`` and ONNX: the request vectors are an input, and other requests need no new export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import RequestError
from cramer_peft.export import RequestModule

ROWS = torch.export.Dim("rows", min=1, max=64)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def score(self, x: Tensor) -> Tensor:
        return self(x).mean(-1)


class Sequential(nn.Module):
    """SASRec in small: causal torch encoder over item ids (rows, 6), scores of 30 items."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(30, 8, padding_idx=0), nn.Parameter(torch.randn(6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
        hidden = self.encoder(self.items(ids) + self.positions, mask=mask, is_causal=True)
        return hidden[:, -1] @ self.items.weight.T


TARGETS = {Perceptron: ["up", "down"], Sequential: ["self_attn", "linear1", "linear2"]}


def make(kind: type[nn.Module], gate: str, with_active: bool) -> tuple[RequestModule, Callable[[int], tuple]]:
    config = RequestMaskConfig(
        target_modules=TARGETS[kind], request_dim=5, gate=gate, init_weights=False, generator_width=7
    )
    module = RequestModule(inject_request_masks(kind().eval(), config), with_active=with_active).eval()

    def example(rows: int) -> tuple:
        x = torch.randn(rows, 8) if kind is Perceptron else torch.randint(1, 30, (rows, 6))
        active = (torch.arange(rows) % 3 != 1,) if with_active else ()
        return (x, torch.randn(rows, 5), *active)

    return module, example


def dynamic(example: tuple) -> tuple:
    return (tuple({0: ROWS} for _ in example),)


@pytest.mark.parametrize(("kind", "with_active"), [(Perceptron, False), (Perceptron, True), (Sequential, True)])
def test_an_exported_program_takes_other_requests(kind: type[nn.Module], gate: str, with_active: bool) -> None:
    module, example = make(kind, gate, with_active)
    first = example(3)
    program = torch.export.export(module, first, dynamic_shapes=dynamic(first)).module()
    for rows in (3, 1, 7):
        given = example(rows)
        found, expected = program(*given), module(*given)
        assert torch.allclose(found, expected, atol=1e-6)
        masked = module.masks(given[0], request=[v if a else None for v, a in _rows(given)])
        assert torch.allclose(found, masked, atol=1e-5)
        frozen = module.masks(given[0], request=None)
        assert not torch.allclose(found, frozen, atol=1e-3)
        if with_active:
            nobody = program(given[0], given[1], torch.zeros(rows, dtype=torch.bool))
            assert torch.allclose(nobody, frozen, atol=1e-6)


def _rows(given: tuple) -> list[tuple[Tensor, bool]]:
    active = given[2].tolist() if len(given) > 2 else [True] * len(given[0])
    return list(zip(given[1], active, strict=True))


def test_a_vector_of_zeros_is_a_request(gate: str) -> None:
    """It is the generator's answer to zeros: the frozen model needs ``active``."""
    module, example = make(Perceptron, gate, with_active=True)
    x, zeros = example(3)[0], torch.zeros(3, 5)
    assert not torch.allclose(module(x, zeros, torch.ones(3, dtype=torch.bool)), module.masks(x, request=None))
    assert torch.equal(module(x, zeros, torch.zeros(3, dtype=torch.bool)), module.masks(x, request=None))


def test_the_configured_strength_another_method_and_the_peft_door() -> None:
    config = RequestMaskConfig(target_modules=["up", "down"], request_dim=5, init_weights=False, strength=0.5)
    model = get_peft_model(Perceptron(), config).eval()
    x, vectors = torch.randn(3, 8), torch.randn(3, 5)
    module = RequestModule(model, method="score")
    assert torch.allclose(module(x, vectors), model(x, request=vectors).mean(-1), atol=1e-6)
    program = torch.export.export(module, (x, vectors)).module()
    assert torch.allclose(program(2 * x, -vectors), model(2 * x, request=-vectors).mean(-1), atol=1e-6)
    with pytest.raises(RequestError, match="RequestModule takes the handle"):
        RequestModule(Perceptron())


def onnx_session(module: nn.Module, first: tuple, names: list[str]):
    pytest.importorskip("onnx", reason="extra onnx")
    pytest.importorskip("onnxscript", reason="extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="extra onnx")
    with torch.no_grad():
        exported = torch.onnx.export(
            module, first, dynamo=True, dynamic_shapes=dynamic(first), input_names=names, verbose=False, optimize=False
        )
    return runtime.InferenceSession(exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


ONNX = [(Perceptron, "scale", False), (Perceptron, "topk", False), (Perceptron, "low_rank", True)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "gate", "with_active"), [*ONNX, (Sequential, "low_rank", True)])
def test_onnxruntime_agrees(kind: type[nn.Module], gate: str, with_active: bool) -> None:
    module, example = make(kind, gate, with_active)
    names = ["x", "request", "active"][: 2 + with_active]
    session = onnx_session(module, example(3), names)
    assert [value.name for value in session.get_inputs()] == names
    largest = 0.0
    with torch.no_grad():
        for i in range(50):
            given = example(1 + i % 7)
            feed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
            found = torch.from_numpy(session.run(None, feed)[0])
            largest = max(largest, float((found - module(*given)).abs().max()))
            if with_active:
                nobody = torch.from_numpy(session.run(None, {**feed, "active": ~(feed["active"] | True)})[0])
                largest = max(largest, float((nobody - module.masks(given[0], request=None)).abs().max()))
    print(f"{kind.__name__}, {gate}: largest difference of 50 batches {largest:.1e}")
    assert largest < 1e-5
