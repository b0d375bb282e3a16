"""One request in the weights, and the originals back: the same objects with the same bits, for every layer and gate."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError, MergeError, RequestError, UnsupportedError
from cramer_peft.layers.linear import MaskedLinear

DIM, WIDTH = 5, 8


class First(nn.Module):
    """The output of a module that gives states or weights, too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(getattr(self.layer, "base_layer", self.layer), nn.MultiheadAttention):
            return self.layer(x, x, x)[0]
        output = self.layer(x)
        return output[0] if isinstance(output, tuple) else output


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(WIDTH, 6), (3, 4, WIDTH)),
    "Linear without bias": (lambda: nn.Linear(WIDTH, 6, bias=False), (3, WIDTH)),
    "Conv1D": (lambda: Conv1D(6, WIDTH), (3, 4, WIDTH)),
    "Conv1d": (lambda: nn.Conv1d(WIDTH, 6, 3), (3, WIDTH, 5)),
    "Conv2d in groups": (lambda: nn.Conv2d(WIDTH, 6, 3, groups=2), (3, WIDTH, 4, 5)),
    "Embedding": (lambda: nn.Embedding(9, 6), (3, 4)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), (3, 4, WIDTH)),
    "attention of other widths": (
        lambda: nn.MultiheadAttention(WIDTH, 2, kdim=WIDTH, vdim=WIDTH, bias=False, batch_first=True),
        (3, 4, WIDTH),
    ),
    "RNN": (lambda: nn.RNN(WIDTH, 6, batch_first=True), (3, 4, WIDTH)),
    "GRU": (lambda: nn.GRU(WIDTH, 6, batch_first=True, bidirectional=True), (3, 4, WIDTH)),
    "LSTM": (lambda: nn.LSTM(WIDTH, 6, num_layers=2, batch_first=True), (3, 4, WIDTH)),
}


def build(kind: str) -> tuple[First, Tensor]:
    make, shape = KINDS[kind]
    model = First(make()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randint(9, shape) if kind == "Embedding" else torch.randn(shape)
    return model, x


def masked(model: nn.Module, gate: str, **options) -> RequestMaskModel:
    values = {"target_modules": ["layer"], "request_dim": DIM, "init_weights": False, **options}
    if gate == "topk":
        values = {"drop_ratio": 0.3, **values}
    return inject_request_masks(model, RequestMaskConfig(gate=gate, **values))


def originals(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    parameters = dict(model.named_parameters())
    return parameters, {name: value.detach().clone() for name, value in parameters.items()}


def restored(model: nn.Module, kept: tuple[dict[str, nn.Parameter], dict[str, Tensor]]) -> bool:
    parameters = dict(model.named_parameters())
    return parameters.keys() == kept[0].keys() and all(
        parameters[name] is kept[0][name] and torch.equal(value, kept[1][name]) for name, value in parameters.items()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_state", [False, True])
def test_merged_is_the_request_and_unmerged_the_frozen_model(kind: str, gate: str, as_state: bool) -> None:
    model, x = build(kind)
    masks, vector = masked(model, gate), torch.randn(DIM)
    kept, frozen, expected = originals(model), model(x), masks(x, request=vector)
    assert not torch.allclose(expected, frozen, atol=1e-3)
    masks.merge_request(masks.mask_state(vector) if as_state else vector)
    assert masks.merged
    assert torch.allclose(masks(x), expected, atol=1e-4)
    assert torch.allclose(model(x), expected, atol=1e-4)
    assert not restored(model, kept)
    masks.unmerge()
    assert restored(model, kept)
    assert torch.equal(model(x), frozen)
    assert torch.equal(masks(x, request=vector), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_other_precisions(kind: str, gate: str, dtype: torch.dtype) -> None:
    model, x = build(kind)
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    masks, vector = masked(model, gate), torch.randn(DIM)
    kept, expected = originals(model), masks(x, request=vector)
    masks.merge_request(vector)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.allclose(masks(x).double(), expected.double(), rtol=0.1, atol=0.2)
    masks.unmerge()
    assert restored(model, kept)


def zeroed(state: MaskState) -> MaskState:
    """The state whose gates are exactly zero."""

    def value(part: str, old: Tensor) -> Tensor:
        if part.endswith("logits"):
            return torch.full_like(old, -1e4)
        first = torch.zeros_like(old)
        if old.dim() == 2:
            return first - 1
        first[:, 0] = -1.0 if part == "a" else 1.0
        return first

    tensors = {name: {part: value(part, old) for part, old in parts.items()} for name, parts in state.tensors.items()}
    return replace(state, tensors=tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["low_rank", "scale"])
def test_gates_of_exactly_zero_are_undone(kind: str, form: str) -> None:
    model, x = build(kind)
    masks = masked(model, form)
    kept, frozen, state = originals(model), model(x), zeroed(masks.mask_state(torch.randn(DIM)))
    gates = masks.masks_for(state)
    assert all(not (g.values if hasattr(g, "values") else g.weight_mask()).any() for g in gates.values())
    masks.merge_request(state)
    assert any(not value.any() for value in model.parameters())
    assert torch.allclose(masks(x), masks_output(masks, model, x, state), atol=1e-5)
    masks.unmerge()
    assert restored(model, kept)
    assert torch.equal(model(x), frozen)


def masks_output(masks: RequestMaskModel, model: nn.Module, x: Tensor, state: MaskState) -> Tensor:
    masks.unmerge()
    output = masks(x, request=state)
    masks.merge_request(state)
    return output


def test_most_gates_of_topk_zero() -> None:
    model, _ = build("Linear")
    masks = masked(model, "topk", drop_ratio=0.9)
    kept = originals(model)
    masks.merge_request(torch.randn(DIM))
    assert (model.layer.base_layer.weight == 0).float().mean() > 0.5
    masks.unmerge()
    assert restored(model, kept)


def test_requires_grad_and_the_other_parameters_stay(gate: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    masks = masked(model, gate, target_modules=["0"])
    other, flags = model[1].weight, [p.requires_grad for p in model.parameters()]
    masks.merge_request(torch.randn(DIM))
    assert model[1].weight is other
    assert not any(p.requires_grad for p in model[0].base_layer.parameters())
    masks.unmerge()
    assert [p.requires_grad for p in model.parameters()] == flags


def test_nothing_but_one_request_can_be_merged(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    kept = originals(model)
    for nothing in (None, "", " ", ["", None]):
        with pytest.raises(RequestError, match="nothing to merge"):
            masks.merge_request(nothing)
    with pytest.raises(RequestError, match="nothing to merge"):
        masks.merge_request("more horror", strength=0)
    with pytest.raises(RequestError, match="one request"):
        masks.merge_request(["a", "b"])
    assert not masks.merged
    assert restored(model, kept)


def test_while_merged_other_requests_and_changes_are_refused(model, make_config, x, tmp_path) -> None:
    masks = inject_request_masks(model, make_config())
    kept = originals(model)
    masks.merge_request("more horror")
    for use in (
        lambda: masks.merge_request("again"),
        lambda: masks(x, request="other"),
        lambda: masks.request("other").__enter__(),
        lambda: masks.add_adapter("second", make_config()),
    ):
        with pytest.raises(MergeError, match="unmerge"):
            use()
    assert list(masks.peft_config) == ["default"]
    masks.unmerge()
    masks.unmerge()
    assert restored(model, kept)


def test_strength_is_folded_in(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config())
    expected = masks(x, request="more horror", request_strength=-0.5)
    masks.merge_request("more horror", strength=-0.5)
    assert torch.allclose(masks(x), expected, atol=1e-5)


def test_several_adapters_are_folded_together(make_model, make_config, gate: str, x) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config(gate))
    masks.add_adapter("second", make_config("low_rank", target_modules=["down", "out"]))
    masks.set_adapter(["default", "second"])
    kept = originals(model)
    for request in ("more horror", {"default": "more horror", "second": "old"}):
        expected = masks(x, request=request)
        masks.merge_request(request)
        assert torch.allclose(masks(x), expected, atol=1e-5)
        masks.unmerge()
        assert restored(model, kept)


def test_disabling_takes_the_request_out_and_puts_it_back(make_model, make_config, x) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config())
    kept, frozen = originals(model), masks(x)
    masks.merge_request("more horror")
    merged = masks(x)
    with masks.disable_adapter():
        assert torch.equal(masks(x), frozen)
        assert restored(model, kept)
    assert torch.equal(masks(x), merged)
    with pytest.raises(KeyError), masks.disable_adapter():
        raise KeyError
    assert torch.equal(masks(x), merged)
    with masks.disable_adapter():
        masks.unmerge()
        assert restored(model, kept)
    assert restored(model, kept)


def test_merging_while_disabled(make_model, make_config, x) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config())
    kept, frozen, expected = originals(model), masks(x), masks(x, request="more horror")
    with masks.disable_adapter():
        masks.merge_request("more horror")
        assert torch.equal(masks(x), frozen)
    assert torch.allclose(masks(x), expected, atol=1e-5)
    masks.unmerge()
    assert restored(model, kept)
    with masks.disable_adapter():
        masks.merge_request("more horror")
        masks.unmerge()
        assert restored(model, kept)
    assert restored(model, kept)


@pytest.mark.parametrize("kind", ["Linear", "LSTM", "MultiheadAttention"])
def test_copies_and_pickles_of_a_merged_model(kind: str, gate: str) -> None:
    model, x = build(kind)
    masks = masked(model, gate)
    kept, frozen, vector = originals(model), model(x), torch.randn(DIM)
    masks.merge_request(vector)
    merged = masks(x)
    for copied in (copy.deepcopy(masks), pickle.loads(pickle.dumps(masks))):
        assert torch.equal(copied(x), merged)
        copied.unmerge()
        assert torch.equal(copied(x), frozen)
        assert torch.equal(masks(x), merged)
    masks.unmerge()
    assert restored(model, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_casting_while_merged(kind: str, gate: str) -> None:
    model, x = build(kind)
    masks, vector = masked(model, gate), torch.randn(DIM)
    kept = originals(model)[1]
    masks.merge_request(vector)
    masks.model.double()
    x = x.double() if x.is_floating_point() else x
    output = masks(x)
    assert output.dtype == torch.float64
    with masks.disable_adapter():
        assert masks(x).dtype == torch.float64
    assert torch.equal(masks(x), output)
    masks.unmerge()
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], value.double()) for name, value in kept.items())


def test_what_a_merged_layer_multiplies_by_moves_with_it(gate: str) -> None:
    model, _ = build("LSTM")
    masks = masked(model, gate)
    masks.merge_request(torch.randn(DIM))
    gates = dict(model.layer.merged_masks)
    masks.model.to("meta")
    assert {gate.values.device.type for gate in model.layer.merged_masks.values()} == {"meta"}
    model.layer.put_merged_masks(gates)
    assert {gate.values.device.type for gate in model.layer.merged_masks.values()} == {"meta"}


def test_a_failure_while_folding_leaves_nothing_half_done(model, make_config, x, monkeypatch) -> None:
    masks = inject_request_masks(model, make_config())
    kept, frozen, fold = originals(model), masks(x), MaskedLinear.fold_parts

    def failing(layer, gates, row):
        if layer.module_name == "down":
            raise KeyboardInterrupt
        return fold(layer, gates, row)

    monkeypatch.setattr(MaskedLinear, "fold_parts", failing)
    with pytest.raises(KeyboardInterrupt):
        masks.merge_request("more horror")
    assert not masks.merged
    assert restored(model, kept)
    assert torch.equal(masks(x), frozen)


def test_tied_weights_and_parametrized_ones_are_refused(make_model, make_config, x) -> None:
    model = make_model()
    model.out.weight = model.embedding.weight
    masks = inject_request_masks(model, make_config(target_modules=["up", "out"]))
    kept = originals(model)
    with pytest.raises(MergeError, match=r"'out'.*tied"):
        masks.merge_request("more horror")
    assert restored(model, kept)
    assert masks(x, request="more horror").shape == (3, 20)
    other = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    try:
        parametrized = masked(other, "scale", target_modules=["0", "1"])
    except ValueError:
        return  # injection refuses it, which is earlier and as good
    before = parametrized(torch.ones(1, 4))
    with pytest.raises(MergeError, match="parametrization"):
        parametrized.merge_request(torch.randn(DIM))
    assert torch.equal(parametrized(torch.ones(1, 4)), before)


def test_safe_merge_refuses_what_is_not_finite(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    kept, state = originals(model), masks.mask_state("more horror")
    state.tensors["down"]["a"] = state.tensors["down"]["a"] * float("inf")
    with pytest.raises(MergeError, match="NaNs detected"):
        masks.merge_request(state, safe_merge=True)
    assert restored(model, kept)


def test_unloading_a_merged_model_gives_the_frozen_one(model, make_config, snapshot) -> None:
    before = snapshot(model)
    masks = inject_request_masks(model, make_config())
    masks.merge_request("more horror")
    masks.unload()
    assert before.differences(model) == []


def test_merging_for_good(make_model, make_config, gate: str, x) -> None:
    model = make_model()
    masks = inject_request_masks(model, make_config(gate))
    expected = masks(x, request="more horror")
    masks.merge_request("more horror")
    plain = masks.merge_and_unload()
    assert plain is model
    assert {type(module) for module in model.modules()} == {type(make_model()), nn.Embedding, nn.Linear}
    assert torch.allclose(model(x), expected, atol=1e-5)


@pytest.mark.parametrize("door", ["ours", "peft"])
def test_the_stored_default_request_is_what_peft_merges(make_model, make_config, gate: str, x, door: str) -> None:
    model = make_model()
    frozen, config = model(x), make_config(gate, default_request="more horror")
    masks = get_peft_model(model, config).eval() if door == "peft" else inject_request_masks(model, config)
    kept, expected = originals(model), masks(x)
    assert not torch.equal(expected, frozen)
    masks.merge_adapter()
    assert torch.allclose(masks(x), expected, atol=1e-5)
    masks.unmerge_adapter()
    assert restored(model, kept)
    with pytest.raises(ConfigError, match="no adapter 'none'"):
        masks.merge_adapter(["none"])
    plain = masks.merge_and_unload()
    assert torch.allclose(plain(x), expected, atol=1e-5)


def test_parts_without_a_place_in_a_weight_keep_the_adapter(gate: str) -> None:
    model, x = build("LSTM")
    masks = masked(model, gate)
    masks.merge_request(torch.randn(DIM))
    with pytest.raises(MergeError, match="no place in a weight"):
        masks.merge_and_unload()
    assert masks.merged
    assert torch.equal(masks(x), model(x))


def test_without_a_stored_request_peft_has_nothing_to_merge(model, make_config) -> None:
    masks = inject_request_masks(model, make_config())
    with pytest.raises(UnsupportedError, match="merge_request"):
        masks.merge_adapter()


def test_a_stored_request_of_strength_zero_is_nothing_to_merge(model, make_config) -> None:
    masks = inject_request_masks(model, make_config(strength=0.0, default_request=[1.0] * 8, request_dim=8))
    with pytest.raises(RequestError, match="strength 0"):
        masks.merge_adapter()
    assert not masks.merged


def test_what_was_merged_stays_where_a_further_merge_fails(model, make_config, x, monkeypatch) -> None:
    masks = inject_request_masks(model, make_config(default_request=[1.0] * 8, request_dim=8))
    masks.add_adapter("second", make_config(default_request=[-1.0] * 8, request_dim=8))
    masks.merge_adapter(["default"])
    merged = masks(x)
    monkeypatch.setattr(MaskedLinear, "fold_parts", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        masks.merge_adapter(["second"])
    assert masks.merged
    assert model.up.merged_adapters == ["default"]
    assert torch.equal(masks(x), merged)


class Elsewhere(torch.Tensor):
    """A weight whose numbers lie in another tensor, without a storage of its own, as torchao's."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        def plain(value):
            return value.inner if isinstance(value, cls) else value

        if operator is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        return operator(*map(plain, args), **(kwargs or {}))


@pytest.mark.parametrize("quantised", ["up", "embedding"])
def test_weights_without_a_storage(model, make_config, x, quantised: str) -> None:
    masks = inject_request_masks(model, make_config())
    expected = masks(x, request="drama")
    layer = getattr(model, quantised)
    layer = layer.base_layer if quantised == "up" else layer
    layer.weight = nn.Parameter(Elsewhere(layer.weight.detach()), requires_grad=False)
    assert torch.allclose(masks(x, request="drama"), expected, atol=1e-5)
    if quantised == "up":
        with pytest.raises(MergeError, match="module 'up': its weight is quantised"):
            masks.merge_request("drama")
    else:  # another module's
        masks.merge_request("drama")
        assert torch.allclose(masks(x), expected, atol=1e-5)
    assert not masks.merged or quantised == "embedding"
