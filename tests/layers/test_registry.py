from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskLayer, inject_request_masks, register_mask_layer
from cramer_peft.errors import RequestError, TargetModuleError
from cramer_peft.layers import MaskedConv1D, MaskedLinear, registry
from cramer_peft.layers.registry import registered_classes, wrapper_for
from cramer_peft.masks import LayerSpec, WeightProjection


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_WRAPPERS", dict(registry._WRAPPERS))


class Renamed(nn.Linear):
    """Another initialisation, say, but Linear's own forward."""


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class DoubledRenamed(Doubled):
    pass


def test_supported_classes() -> None:
    assert wrapper_for(nn.Linear(2, 2)) is MaskedLinear
    assert wrapper_for(Conv1D(2, 2)) is MaskedConv1D
    assert wrapper_for(nn.Bilinear(2, 2, 2)) is None
    assert {"Conv1D", "Conv1d", "Conv2d", "Embedding", "GRU", "LSTM", "Linear", "RNN"} <= set(registered_classes())


def test_a_subclass_is_masked_only_with_its_parents_forward() -> None:
    assert wrapper_for(Renamed(2, 2)) is MaskedLinear
    assert wrapper_for(Doubled(2, 2)) is None
    assert wrapper_for(DoubledRenamed(2, 2)) is None
    # Its forward reads the scale of its quantised weight.
    assert wrapper_for(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2)) is MaskedLinear


def test_a_subclass_with_its_own_forward_is_refused_by_name(make_config, snapshot) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Doubled(2, 2))
    before = snapshot(model)
    with pytest.raises(TargetModuleError, match=r"'1' is a Doubled; supported are Conv1D, .*Linear"):
        inject_request_masks(model, make_config(target_modules=["0", "1"]))
    assert before.differences(model) == []


def test_users_can_register_a_class(make_config, gate: str) -> None:
    @register_mask_layer(Doubled)
    class MaskedDoubled(MaskedLinear):
        @property
        def base_bias(self) -> torch.Tensor:
            return 2 * self.base_layer.bias

        @classmethod
        def masked_weight(cls, base_layer: nn.Module) -> torch.Tensor:
            return 2 * base_layer.weight

        def project(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().project(x)

    model, x = nn.Sequential(DoubledRenamed(4, 3)).eval(), torch.randn(2, 4)
    frozen = model(x)
    masks = inject_request_masks(model, make_config(gate, target_modules=["0"]))
    assert isinstance(model[0], MaskedDoubled)
    output = masks(x, request=["a", None])
    assert torch.equal(output[1], frozen[1])
    weight, bias = model[0].fold(masks.masks_for(["a"])["0"], 0)
    assert torch.allclose(output[0], nn.functional.linear(x[0], weight, bias), atol=1e-5)
    assert "Doubled" in registered_classes()
    masks.unload()
    assert type(model[0]) is DoubledRenamed


def test_a_later_registration_replaces_the_earlier() -> None:
    class Other(MaskedLinear):
        pass

    assert register_mask_layer(nn.Linear)(Other) is Other
    assert wrapper_for(nn.Linear(2, 2)) is Other


class GatedUnit(nn.Module):
    """A gated linear unit with two weights of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(out_features, in_features))
        self.switch = nn.Parameter(torch.randn(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.value.T * torch.sigmoid(x @ self.switch.T)


class MaskedGatedUnit(RequestMaskLayer):
    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> dict[str, LayerSpec]:
        return {part: LayerSpec(*getattr(base_layer, part).shape) for part in ("value", "switch")}

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        return [base_layer.value, base_layer.switch]

    def masked_forward(self, gates: Mapping[str, Any], x: Tensor) -> Tensor:
        return self.part(gates, "value", x) * torch.sigmoid(self.part(gates, "switch", x))

    def fold_parts(self, gates: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        return {part: gate.fold(getattr(self.base_layer, part), None, row)[0] for part, gate in gates.items()}

    def part(self, gates: Mapping[str, Any], name: str, x: Tensor) -> Tensor:
        projection = WeightProjection(getattr(self.base_layer, name))
        if name not in gates:
            return projection.base_forward(x)
        return self.fitted(gates[name], x, self.batch_dim).apply(projection, x, self.batch_dim)


@pytest.mark.parametrize("parts", [None, ["value"], ["switch"]])
def test_users_can_register_a_class_with_several_parts(make_config, snapshot, gate: str, parts) -> None:
    register_mask_layer(GatedUnit)(MaskedGatedUnit)
    model, x = nn.Sequential(GatedUnit(8, 4)).eval().requires_grad_(False), torch.randn(3, 5, 8)
    before, frozen = snapshot(model), model(x)
    masks = inject_request_masks(model, make_config(gate, target_modules=["0"], module_parts=parts))
    requests = ["a", None, "b"]
    gates = masks.masks_for(requests)
    assert set(gates) == {f"0.{part}" for part in parts or ["value", "switch"]}
    output = masks(x, request=requests)
    assert torch.equal(output[1], frozen[1])
    for row in (0, 2):
        folded = model[0].fold_parts({name.removeprefix("0."): gate for name, gate in gates.items()}, row)
        assert list(folded) == (parts or ["value", "switch"])
        assert torch.allclose(output[row], torch.func.functional_call(model[0].base_layer, folded, x[row]), atol=1e-5)
        assert not torch.allclose(output[row], frozen[row], atol=1e-3)
    with pytest.raises(RequestError, match=r"'0'.*found 3 rows.*2 requests"):
        masks(x, request=["a", "b"])

    masks.merge_request("a")
    assert torch.allclose(model(x)[0], output[0], atol=1e-5)
    masks.unmerge()
    assert torch.equal(model(x), frozen)
    masks.unload()
    assert before.differences(model) == []


def test_the_fingerprint_covers_every_weight_that_a_class_names(make_config) -> None:
    register_mask_layer(GatedUnit)(MaskedGatedUnit)

    def fingerprint(model: nn.Module) -> str:
        masks = inject_request_masks(model, make_config(target_modules=["0"]))
        found = masks.peft_config["default"].base_fingerprint
        masks.unload()
        return found

    model = nn.Sequential(GatedUnit(8, 4))
    first = fingerprint(model)
    assert fingerprint(model) == first
    with torch.no_grad():
        model[0].switch[0, 0] += 1
    assert fingerprint(model) != first
