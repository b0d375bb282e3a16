from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import inject_request_masks
from cramer_peft.errors import CramerError, EffectError


class ReadsTheWeight(nn.Module):
    """Calls one linear layer, reads the weight of another in eval mode, and never calls the third."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.idle = (nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.called(x)))
        return self.read(x) if self.training else multiply(self.read, x)


def multiply(layer: nn.Linear, x: Tensor) -> Tensor:
    """Use the weight outside every class, where no look at the model's source finds it."""
    return nn.functional.linear(x, layer.weight, layer.bias)


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


# ---------------------------------------------------------------- rows


class Experts(nn.Module):
    """Sends each token to an expert by its sign; ``even`` inputs give every expert as many tokens as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.out = nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4)
        found = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            chosen = ((tokens[:, 0] > 0) == bool(number)).nonzero()[:, 0]
            found = found.index_add(0, chosen, expert(tokens[chosen]))
        return self.out(found.reshape(x.shape))


class Wrapped(nn.Module):
    """Gives the output of a layer that has been put between two others, in a form of its own."""

    def __init__(self, middle: Callable[[Tensor], Tensor], give: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.middle, self.give = middle, give

    def forward(self, x: Tensor) -> Any:
        return self.give(self.last(self.middle(torch.tanh(self.first(x)))))


def even(rows: int) -> Tensor:
    """Return rows of two tokens; both of row 0 have another sign than those of row 1, and the others one of each."""
    x = torch.randn(rows, 2, 4).abs()
    x[1:, 0, 0] *= -1
    x[1, :, 0] = -1.0
    return x


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_tokens_of_other_rows_are_found_where_the_counts_agree(make_config, snapshot, rows: int) -> None:
    model, x = Experts().eval(), even(rows)
    assert all(int((x[..., 0] > 0).sum()) == count for count in (rows,))
    masks = inject_request_masks(model, make_config(target_modules=r"experts\.\d"))
    before, state = snapshot(model), torch.random.get_rng_state()
    with pytest.raises(EffectError, match=r"moves the output of row \d.*routed"):
        masks.check_effect(x)
    assert before.differences(model) == []
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(EffectError):
        masks.check_effect(x=x)
    assert len(masks.check_effect(even(3)[2:])) == 4  # one row depends on nobody


def test_tokens_of_other_rows_where_the_counts_differ(make_config) -> None:
    masks = inject_request_masks(Experts().eval(), make_config(target_modules=r"experts\.\d"))
    x = torch.randn(3, 3, 4).abs()
    x[0, 0, 0] = -1
    with pytest.raises(CramerError, match=r"'experts\.\d'"):
        masks.check_effect(x)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "in another order": lambda x: x[torch.tensor([1, 0, 2])],
    "rolled": lambda x: x.roll(1, 0),
    "summed": lambda x: x + x.mean(0, keepdim=True),
    "transposed": lambda x: x.transpose(0, 1),
}


@pytest.mark.parametrize("kind", MIXING)
def test_models_that_mix_rows(make_config, gate: str, kind: str) -> None:
    masks = inject_request_masks(Wrapped(MIXING[kind]).eval(), make_config(gate, target_modules=["first", "last"]))
    x = torch.randn(3, 3, 4)
    with pytest.raises(EffectError, match="another request for row"):
        masks.check_effect(x)


GIVEN: dict[str, Callable[[Tensor], Any]] = {
    "a tensor": lambda x: x,
    "a mapping": lambda x: {"scores": x, "loss": x.mean()},
    "a pair": lambda x: (x, None),
    "a mean over positions": lambda x: x.mean(1),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("options", [{}, {"batch_dim": -3}])
def test_healthy_models_pass(make_config, gate: str, kind: str, options: dict) -> None:
    model = Wrapped(nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.5)), GIVEN[kind]).eval()
    masks = inject_request_masks(model, make_config(gate, target_modules=["first", "last"], **options))
    for shape in ((3, 5, 4), (4, 4, 4), (1, 5, 4)):
        assert len(masks.check_effect(torch.randn(shape))) == 4


@pytest.mark.parametrize("folding", ["rows_first", "rows_last"])
def test_folded_rows_pass(make_config, folding: str) -> None:
    def fold(x: Tensor) -> Tensor:
        return x.reshape(-1, 4) if folding == "rows_first" else x.transpose(0, 1).reshape(-1, 4)

    model = Wrapped(lambda x: x)
    model.forward = lambda x: (
        Wrapped.forward(model, fold(x)).reshape(3, 2, 4)
        if folding == "rows_first"
        else Wrapped.forward(model, fold(x)).reshape(2, 3, 4).transpose(0, 1)
    )
    masks = inject_request_masks(model, make_config(target_modules=["first", "last"], batch_folding=folding))
    assert len(masks.check_effect(torch.randn(3, 2, 4))) == 4


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 4, num_layers=2, batch_first=batch_first)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x)


@pytest.mark.parametrize(
    ("make", "targets", "options", "shape"),
    [
        (lambda: Recurrent(True), ["layer"], {}, (2, 5, 4)),  # its last state is (layers, rows, width)
        (lambda: Recurrent(False), ["layer"], {"batch_dim": 1}, (3, 3, 4)),
        (lambda: Wrapped(lambda x: x), ["first", "last"], {"batch_dim": 1}, (3, 3, 4)),
        (lambda: Wrapped(lambda x: x), ["first", "last"], {"batch_dim": -2}, (4, 4, 4)),
    ],
    ids=["layers", "sequence first", "second dimension", "from the end"],
)
def test_as_many_of_something_else_as_rows(make_config, make: Callable, targets, options: dict, shape) -> None:
    masks = inject_request_masks(make().eval(), make_config(target_modules=targets, **options))
    assert masks.check_effect(torch.randn(shape))
