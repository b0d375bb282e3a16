"""What is promised on the CPU, on a GPU too; without one the same tests run on the CPU alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskModel, inject_request_masks, load_request_masks

ROWS, LENGTH, WIDTH, DIM = 4, 6, 24, 8
NEAR = 5e-3  # cuDNN's recurrent layers round their inputs to 10 bits (TF32)


class Residual(nn.Module):
    """A perceptron beside its input; ``flat`` reads the last position alone, which is a view with gaps."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.up, self.down = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, -1] if self.flat else x[:, 1:]
        return x + self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """Attention of transformers' kind, by linear layers, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm, self.mlp = nn.LayerNorm(WIDTH), Residual(flat=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.mlp(x + self.out(attended.transpose(1, 2).flatten(-2)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(WIDTH, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "positions": (lambda: Residual(flat=False), ["up", "down"]),
    "last position": (lambda: Residual(flat=True), ["up", "down"]),
    "attention": (Block, ["qkv", "out", "up", "down"]),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(WIDTH, 2, 40, batch_first=True), ["self_attn", "linear1"]),
    "recurrent": (Recurrent, ["rnn", "out"]),
}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def unfused() -> Any:
    """Off with torch's fused attention, which a request takes the model off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def made(kind: str, gate: str = "low_rank", identity: bool = False) -> RequestMaskModel:
    """A handle around a small model, on the CPU, in eval mode."""
    make, targets = MODELS[kind]
    options: dict[str, Any] = {"target_modules": targets, "encoder": "hashing", "encoder_options": {"dim": DIM}}
    options["init_weights"] = identity
    config = RequestMaskConfig.paper(**options) if gate == "topk" else RequestMaskConfig(gate=gate, **options)
    return inject_request_masks(make().eval(), config)


def mixed() -> list[str | None]:
    return ["more horror", None, "no comedy", None]


def inputs(device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(ROWS, LENGTH, WIDTH).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_rows_without_a_request_are_the_frozen_models(
    kind: str, gate: str, device: str, dtype: torch.dtype, unfused: None
) -> None:
    masks = made(kind, gate).to(device, dtype)
    x = inputs(device, dtype)
    frozen, output = masks(x), masks(x, request=mixed())
    assert output.device.type == device
    for row, request in enumerate(mixed()):
        assert torch.equal(output[row], frozen[row]) == (request is None)
    assert torch.equal(masks(x), frozen)  # the block is over


@torch.no_grad()
def test_it_starts_as_the_frozen_model(kind: str, gate: str, device: str, unfused: None) -> None:
    if gate == "topk":
        pytest.skip("its gates are binary from the start")
    masks = made(kind, gate, identity=True).to(device)
    x = inputs(device)
    assert torch.equal(masks(x, request="more horror"), masks(x))


@torch.no_grad()
def test_other_requests_in_the_batch_make_no_difference(kind: str, gate: str, device: str, unfused: None) -> None:
    masks = made(kind, gate).to(device)
    x = inputs(device)
    one, other = masks(x, request=mixed()), masks(x, request=["more horror", "drama", "war", None])
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[3], other[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_autocast(kind: str, gate: str, device: str, dtype: torch.dtype, unfused: None) -> None:
    if kind == "recurrent" and device == "cpu":
        pytest.skip("torch casts no recurrent layer on the CPU")
    masks = made(kind, gate).to(device)
    x = inputs(device)
    with torch.autocast(device, dtype):
        frozen, output = masks(x), masks(x, request=mixed())
    assert output.dtype == frozen.dtype
    assert torch.equal(output[1::2], frozen[1::2])
    assert not torch.equal(output[::2], frozen[::2])


@torch.no_grad()
def test_unloading_gives_the_model_back(kind: str, gate: str, device: str, snapshot: Callable[..., Any]) -> None:
    model = MODELS[kind][0]().eval().to(device)
    x, before = inputs(device), snapshot(model)
    frozen = model(x)
    config = RequestMaskConfig(request_dim=DIM, target_modules=MODELS[kind][1], gate=gate, init_weights=False)
    masks = inject_request_masks(model, config if gate != "topk" else _paper(kind))
    masks(x, request=torch.randn(DIM))
    assert masks.unload() is model
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


def _paper(kind: str) -> RequestMaskConfig:
    return RequestMaskConfig.paper(request_dim=DIM, encoder=None, target_modules=MODELS[kind][1])


@torch.no_grad()
def test_files_know_no_device(kind: str, gate: str, device: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        masks = made(kind, gate).to(device)
    x = inputs(device)
    expected = masks(x, request=mixed())
    masks.save_pretrained(tmp_path)
    model = masks.unload().to("cpu")
    elsewhere = load_request_masks(model, tmp_path)
    assert {tensor.device.type for tensor in elsewhere.state_dict().values()} == {"cpu"}
    assert torch.allclose(elsewhere(x.cpu(), request=mixed()), expected.cpu(), atol=NEAR)
    assert torch.equal(elsewhere.to(device)(x, request=mixed()), expected)
    elsewhere.save_pretrained(tmp_path / "again")
    there = load_request_masks(elsewhere.unload(), tmp_path / "again")
    assert torch.equal(there(x, request=mixed()), expected)


@torch.no_grad()
def test_merging(kind: str, gate: str, device: str) -> None:
    masks = made(kind, gate).to(device)
    x = inputs(device)
    frozen, asked = masks(x), masks(x, request="more horror")
    masks.merge_request("more horror")
    assert torch.allclose(masks(x), asked, atol=NEAR)
    masks.unmerge()
    assert torch.equal(masks(x), frozen)
    masks.merge_request("more horror")
    masks.to("cpu")  # what is merged goes along, and so do the originals when they come back
    assert torch.allclose(masks(x.cpu()), asked.cpu(), atol=NEAR)
    masks.to(device)
    masks.unmerge()
    assert {parameter.device.type for parameter in masks.parameters()} == {device}
    assert torch.equal(masks(x), frozen)


@torch.no_grad()
def test_a_mask_state_of_another_device(kind: str, gate: str, device: str, tmp_path: Path) -> None:
    masks = made(kind, gate)
    here = masks.mask_state(mixed())
    masks.to(device)
    x = inputs(device)
    expected = masks(x, request=mixed())
    there = masks.mask_state(mixed())
    assert there.active.device.type == device
    assert torch.allclose(masks(x, request=here), expected, atol=NEAR)
    assert torch.equal(masks(x, request=there), expected)
    there.save(tmp_path / "state.safetensors")
    assert torch.equal(masks(x, request=MaskState.load(tmp_path / "state.safetensors")), expected)
    masks.to("cpu")
    assert torch.allclose(masks(x.cpu(), request=there), expected.cpu(), atol=NEAR)


@pytest.mark.parametrize("gate", ["low_rank", "scale", "signed"])
@torch.no_grad()
def test_gates_of_a_mask_state_are_where_the_model_is(gate: str) -> None:
    masks = made("positions", gate)
    state = masks.mask_state(mixed())
    masks.to("meta")  # torch refuses to mix it with the CPU, as it does a GPU
    assert masks(inputs("meta"), request=state).device.type == "meta"


@torch.no_grad()
def test_requests_of_any_device(kind: str, device: str, other_device: str) -> None:
    masks = made(kind).to(device)
    x, vectors = inputs(device), torch.randn(ROWS, DIM)
    expected = masks(x, request=vectors.to(device))
    assert torch.equal(masks(x, request=vectors.to(other_device)), expected)
    assert torch.equal(masks(x, request=list(vectors.to(other_device)), request_strength=[1.0] * ROWS), expected)
    texts = ["more horror", vectors[1].to(other_device), None, "war"]
    strength = torch.tensor([1.0, 0.5, 1.0, 0.0]).to(other_device)
    output = masks(x, request=texts, request_strength=strength)
    assert torch.allclose(output[1], masks(x, request=vectors[1].to(device), request_strength=0.5)[1], atol=NEAR)


def test_the_generator_learns_around_a_model_in_eval_mode(kind: str, gate: str, device: str) -> None:
    masks = made(kind, gate).to(device)
    x = inputs(device)
    modes = {name: module.training for name, module in masks.model.named_modules()}
    masks(x, request=mixed()).square().mean().backward()
    gradients = [parameter.grad for parameter in masks.generator.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert any(bool((gradient != 0).any()) for gradient in gradients if gradient is not None)
    assert {name: module.training for name, module in masks.model.named_modules()} == modes
    with torch.no_grad():
        before = masks(x, request="more horror")
    optimizer = torch.optim.AdamW(masks.generator.parameters(), lr=0.1)
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(masks(x, request="more horror"), before)


def test_check_effect(kind: str, device: str) -> None:
    masks = made(kind).to(device)
    assert all(effect.change > 0 for effect in masks.check_effect(inputs(device)))
