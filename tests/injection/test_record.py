import contextlib
from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import inject_request_masks
from cramer_peft.errors import ConfigError, MergeError, RequestError
from cramer_peft.injection.record import ModelRecord, locations, masked_layers
from cramer_peft.layers import RequestMaskLayer
from cramer_peft.layers.registry import _WRAPPERS

REQUESTS = ["more horror", None, "nothing sad"]


class Recommender(nn.Module):
    """Scores items from ids (rows, length) through a layer of some kind; ``predict`` bypasses the root's call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.layer = LAYERS[kind][0]()
        self.out = nn.Linear(8, 20)

    def predict(self, x: Tensor, fail: BaseException | None = None) -> Tensor:
        hidden = self.norm(self.embedding(x))
        if isinstance(self.layer, nn.ModuleList):
            pass
        elif isinstance(self.attention, nn.MultiheadAttention):
            hidden = self.layer(hidden, hidden, hidden)[0]
        elif isinstance(self.attention, nn.Conv1d):
            hidden = self.layer(hidden.transpose(1, 2)).transpose(1, 2)
        elif isinstance(self.attention, nn.Conv2d):
            hidden = self.layer(hidden[:, None])[:, 0]
        elif isinstance(self.attention, nn.TransformerEncoder):
            hidden = self.layer(hidden, src_key_padding_mask=x == 0)
        else:
            hidden = self.layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if fail is not None:
            raise fail
        return self.out(hidden.mean(1))

    @property
    def attention(self) -> nn.Module:
        return self.layer.base_layer if isinstance(self.layer, RequestMaskLayer) else self.layer

    def forward(self, x: Tensor, fail: BaseException | None = None) -> Tensor:
        return self.predict(x, fail)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


# What the layer is, and which modules are masked.
LAYERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "Linear": (lambda: nn.Linear(8, 8), ["layer"]),
    "Conv1D": (lambda: Conv1D(8, 8), ["layer"]),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), ["layer"]),
    "TransformerEncoder": (encoder, ["self_attn", "linear1", "linear2"]),
    "GRU": (lambda: nn.GRU(8, 8, batch_first=True), ["layer"]),
    "LSTM": (lambda: nn.LSTM(8, 8, batch_first=True), ["layer"]),
    "RNN": (lambda: nn.RNN(8, 8, batch_first=True), ["layer"]),
    "Conv1d": (lambda: nn.Conv1d(8, 8, 3, padding=1), ["layer"]),
    "Conv2d": (lambda: nn.Conv2d(1, 1, 3, padding=1), ["layer"]),
    "Embedding": (nn.ModuleList, ["embedding"]),
}


def test_every_kind_that_is_registered_is_here() -> None:
    ours = {kind.__name__ for kind, wrapper in _WRAPPERS.items() if wrapper.__module__.startswith("cramer_peft.")}
    assert LAYERS.keys() - {"TransformerEncoder"} == ours


def nothing(masks, model, x) -> None:
    pass


def normal(masks, model, x) -> None:
    masks(x, request=REQUESTS)
    with masks.request(REQUESTS):
        model(x)
        model.predict(x)


def wrong_request(masks, model, x) -> None:
    for request in (["too", "few"], torch.zeros(3, 3), 7):
        with pytest.raises(RequestError):
            masks(x, request=request)
        with pytest.raises(RequestError), masks.request(request):
            model.predict(x)


def raising(error: type[BaseException]) -> Callable:
    def run(masks, model, x) -> None:
        with pytest.raises(error):
            masks(x, request=REQUESTS, fail=error())
        with pytest.raises(error), masks.request(REQUESTS):
            model(x, fail=error())
        assert masks.request_context.current() is None
        handle = next(masked_layers(model)).register_forward_pre_hook(interrupt(error))
        with pytest.raises(error), masks.request(REQUESTS):
            model.predict(x)
        handle.remove()

    def interrupt(error: type[BaseException]) -> Callable:
        def hook(*_: object) -> None:
            raise error

        return hook

    return run


def training(masks, model, x) -> None:
    masks.train()
    optimizer = torch.optim.AdamW([p for p in masks.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        masks(x, request=REQUESTS).square().sum().backward()
        optimizer.step()


def two_adapters(masks, model, x) -> None:
    config = masks.peft_config["default"]
    layers = [*config.target_modules, "out"]
    other = type(config)(target_modules=layers, request_dim=4, init_weights=False, modules_to_save=["norm"])
    masks.add_adapter("other", other)
    masks.set_adapter(["default", "other"])
    masks(x, request=REQUESTS[1:2] * 3)
    masks(x, request={"default": REQUESTS, "other": torch.randn(3, 4)})
    masks.set_adapter("other")
    masks(x, request=torch.randn(3, 4))
    training_step = masks(x, request=torch.randn(4)).sum()
    training_step.backward()
    masks.delete_adapter("default")


def disabled(masks, model, x) -> None:
    with contextlib.suppress(KeyError), masks.disable_adapter():
        masks(x, request=REQUESTS)
        raise KeyError


def in_force(masks, model, x) -> None:
    """Unloaded inside a request block."""
    with masks.request(REQUESTS):
        model(x)
        masks.unload()


def merged(masks, model, x) -> None:
    """Unloaded while a request is merged."""
    masks.merge_request(REQUESTS[0])
    merged_scores = model(x)
    with pytest.raises(MergeError):
        masks(x, request=REQUESTS)
    assert torch.equal(model(x), merged_scores)


def stored(masks, model, x) -> None:
    masks.set_default_request(REQUESTS[0])
    model(x)
    masks.set_default_request(None)


SCENARIOS = {
    "nothing": nothing,
    "normal": normal,
    "wrong request": wrong_request,
    "error in a forward": raising(RuntimeError),
    "keyboard interrupt in a forward": raising(KeyboardInterrupt),
    "training": training,
    "two adapters": two_adapters,
    "disabled": disabled,
    "stored request": stored,
    "merged": merged,
    "unloaded in force": in_force,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("door", ["ours", "peft"])
def test_unloading_leaves_no_trace(make_config, snapshot, gate, scenario, kind, door, x) -> None:
    model = Recommender(kind).eval()
    # A mixed bag: what was frozen stays frozen, and what was in training mode stays so.
    model.layer.requires_grad_(False)  # torch's recurrent layers round otherwise where a weight wants gradients
    model.embedding.weight.requires_grad_(False)
    model.out.train()
    model.out.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    with torch.no_grad():
        frozen, scores = model(x), model.predict(x)
    options = {"drop_ratio": 0.5} if gate == "topk" else {}
    config = make_config(gate, target_modules=LAYERS[kind][1], **options)
    if door == "ours":
        masks = inject_request_masks(model, config)
        unload = masks.unload
    else:
        wrapped = get_peft_model(model, config)
        masks, unload = wrapped.base_model, wrapped.unload
    assert not torch.equal(masks.eval()(x, request=REQUESTS), frozen)

    SCENARIOS[scenario](masks, model, x)

    with torch.no_grad():
        if scenario == "unloaded in force":
            result = model
        else:
            model.eval()
            with masks.disable_adapter():
                if scenario != "two adapters":
                    assert torch.equal(masks(x, request=None), frozen)
            result = unload()
        assert result is model
        assert before.differences(model) == []
        assert torch.equal(model(x), frozen)
        assert torch.equal(model.predict(x), scores)
    assert not list(masked_layers(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_modules_to_save_are_given_back_after_training(model, make_config, snapshot, x, door: str) -> None:
    before, frozen = snapshot(model), model(x)
    make = inject_request_masks if door == "ours" else get_peft_model
    masks = make(model, make_config(modules_to_save=["out"]))
    optimizer = torch.optim.SGD([p for p in masks.parameters() if p.requires_grad], lr=0.1)
    masks(x, request=REQUESTS).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(masks(x), frozen)
    masks.unload()
    assert before.differences(model) == []
    assert torch.equal(model(x), frozen)


class Shared(nn.Module):
    """One module in two places, two that share their weight, and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.first = nn.Linear(8, 8)
        self.block = nn.ModuleDict({"again": self.first})
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.embedding(x)))
        hidden = torch.tanh(self.block["again"](hidden))
        return self.head(self.tied(hidden)).mean(1)


def test_a_module_in_two_places_and_tied_weights(make_config, gate: str, snapshot, x) -> None:
    model = Shared().eval()
    before, frozen = snapshot(model), model(x)
    masks = inject_request_masks(model, make_config(gate, target_modules=["first", "tied", "head"]))
    assert model.block["again"] is model.first
    assert model.first in list(masked_layers(model))
    assert model.tied.base_layer.weight is model.first.base_layer.weight
    assert model.head.base_layer.weight is model.embedding.weight

    output, gates = masks(x, request=REQUESTS), masks.masks_for(REQUESTS)
    folded = {name: [getattr(model, name).fold(gates[name], r) for r in range(3)] for name in ("first", "tied", "head")}

    def run(row: int) -> torch.Tensor:
        hidden = model.embedding(x[row])
        for name in ("first", "first", "tied", "head"):
            hidden = nn.functional.linear(hidden, *folded[name][row])
            hidden = torch.tanh(hidden) if name == "first" else hidden
        return hidden.mean(0)

    assert torch.allclose(output, torch.stack([run(row) for row in range(3)]), atol=1e-5)
    assert torch.equal(output[1], frozen[1])
    masks(x, request=REQUESTS).sum().backward()
    masks.unload()
    assert before.differences(model) == []
    assert model.block["again"] is model.first
    assert model.tied.weight is model.first.weight
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model(x), frozen)


def test_the_hook_that_peft_puts_on_a_checkpointed_model_is_taken_off(model, make_config, snapshot) -> None:
    model.is_gradient_checkpointing = True
    model.get_input_embeddings = lambda: model.embedding
    before = snapshot(model)
    wrapped = get_peft_model(model, make_config())
    assert before.hooks["embedding"] != snapshot(model).hooks["embedding"]
    wrapped.unload()
    assert before.differences(model) == []


def test_inference_tensors_and_buffers_stay(make_config, snapshot) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = snapshot(model)
    masks = inject_request_masks(model, make_config(target_modules=["0"]))
    masks.eval()
    masks(torch.randn(3, 4), request="a")
    masks.unload()
    assert before.differences(model) == []


def test_the_users_own_hooks_stay(model, make_config, x) -> None:
    calls = []
    masks = inject_request_masks(model, make_config())
    model.register_forward_hook(lambda *_: calls.append("root"))
    model.down.base_layer.register_forward_hook(lambda *_: calls.append("layer"))
    masks.unload()
    model(x)
    assert calls == ["layer", "root"]


def test_injecting_again_and_again(model, make_config, snapshot, x) -> None:
    before, frozen = snapshot(model), model(x)
    for gate in ("low_rank", "scale", "topk"):
        masks = inject_request_masks(model, make_config(gate))
        assert not torch.equal(masks(x, request="a"), frozen)
        masks.unload()
        assert before.differences(model) == []


def test_a_model_that_stood_in_for_its_own_forward_gets_it_back(model, make_config, snapshot, x) -> None:
    own = model.forward
    model.forward = lambda x: own(x) * 2
    replaced, before, frozen = model.forward, snapshot(model), model(x)
    masks = inject_request_masks(model, make_config())
    assert torch.equal(masks(x, request=REQUESTS)[1], frozen[1])
    masks.unload()
    assert model.forward is replaced
    assert before.differences(model) == []


def test_locations_finds_every_place() -> None:
    model = Shared()
    places = locations(model)[id(model.first)]
    assert {(id(owner), name) for owner, name in places} == {(id(model), "first"), (id(model.block), "again")}


def test_a_record_puts_back_what_was_replaced(model, snapshot) -> None:
    before, record = snapshot(model), ModelRecord.of(model)
    record.replace([(model, "up")], nn.Identity())
    record.replace([(model, "up")], nn.ReLU())
    model.train()
    model.requires_grad_(False)
    assert len(before.differences(model)) > 3
    record.restore(model)
    assert before.differences(model) == []


def test_a_masked_layer_that_was_replaced_is_named(model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(model, make_config())
    kept, model.up = model.up, nn.Linear(8, 16)
    for call in (
        masks.unload,
        lambda: masks.save_pretrained(tmp_path / "x"),
        lambda: masks.check_effect(x),
        lambda: masks.merge_request("drama"),
    ):
        with pytest.raises(ConfigError, match=r"module 'up' was replaced .* by a Linear"):
            call()
    assert not (tmp_path / "x").exists()
    model.up = nn.Sequential(kept)  # wrapped by something else, it still follows requests
    masks.save_pretrained(tmp_path / "x")
    model.up = kept
    masks.unload()
