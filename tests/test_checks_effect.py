import pytest
import torch
from torch import Tensor, nn

from cramer_peft import inject_request_masks
from cramer_peft.errors import EffectError


class ReadsTheWeight(nn.Module):
    """Calls one linear layer, reads the weight of another in eval mode, and never calls the third."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.idle = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.called(x)))
        return self.read(x) if self.training else nn.functional.linear(x, self.read.weight, self.read.bias)


class Cancels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.cancelled = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + 0 * self.cancelled(x)


def test_what_every_layer_does(model, make_config, gate: str, x, snapshot) -> None:
    masks = inject_request_masks(model, make_config(gate, init_weights=True))
    before, frozen = snapshot(model), masks(x)
    effects = masks.check_effect(x)
    assert [(e.module, e.mode) for e in effects] == [(n, m) for m in ("train", "eval") for n in ("up", "down")]
    assert all(effect.calls == 1 and effect.change > 0 for effect in effects)
    assert before.differences(model) == []
    assert torch.equal(masks(x), frozen)


def test_layers_without_effect_are_named(make_config, snapshot) -> None:
    model, x = ReadsTheWeight().train(), torch.randn(3, 4)
    masks = inject_request_masks(model, make_config(target_modules=["called", "read", "idle"]))
    before = snapshot(model)
    state = torch.random.get_rng_state()
    with pytest.raises(EffectError) as caught:
        masks.check_effect(x)
    message = str(caught.value)
    assert "'read' in eval mode: is never called" in message
    assert "'idle' in train mode: is never called" in message
    assert "'idle' in eval mode: is never called" in message
    assert "'read' in train" not in message
    assert "'called'" not in message
    assert before.differences(model) == []  # the running statistics of the norm, too
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_whose_output_is_not_used(make_config) -> None:
    masks = inject_request_masks(Cancels(), make_config(target_modules=["used", "cancelled"]))
    with pytest.raises(EffectError, match="'cancelled' in train mode: is called, and the output stays the same"):
        masks.check_effect(torch.randn(3, 4))


def test_inside_torchs_encoder(make_config) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    masks = inject_request_masks(model, make_config(target_modules=["self_attn", "linear1", "linear2"]))
    padding = torch.tensor([[False, False, False], [False, False, True]])
    effects = masks.check_effect(torch.randn(2, 3, 8), src_key_padding_mask=padding)
    assert len(effects) == 2 * 6
    assert all(effect.change > 1e-3 for effect in effects)


def test_another_entry_point(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config())
    assert len(masks.check_effect(x, call=model.predict)) == 4
    assert len(masks.check_effect(call=lambda: {"scores": [model(x)]})) == 4
    with pytest.raises(EffectError, match="no floating-point tensor"):
        masks.check_effect(x, call=lambda x: x)


def test_buffers_that_a_forward_replaces_are_put_back(make_config) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, x: Tensor) -> Tensor:
            self.calls, self.last = self.calls + 1, x
            return self.linear(x)

    model = Counts().eval()
    calls = model.calls
    masks = inject_request_masks(model, make_config(target_modules=["linear"]))
    assert len(masks.check_effect(torch.randn(3, 4))) == 2
    assert model.calls is calls
    assert model.last is None
    assert calls == 0


def test_disabled_adapters_are_said_to_be_so(model, make_config, x) -> None:
    masks = inject_request_masks(model, make_config())
    with masks.disable_adapter(), pytest.raises(EffectError, match="adapters are disabled"):
        masks.check_effect(x)
