import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cramer_peft import inject_request_masks, register_mask_layer
from cramer_peft.errors import TargetModuleError
from cramer_peft.layers import MaskedConv1D, MaskedLinear, registry
from cramer_peft.layers.registry import registered_classes, wrapper_for


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
    weight, bias = model[0].fold(masks.gates(["a"])["0"], 0)
    assert torch.allclose(output[0], nn.functional.linear(x[0], weight, bias), atol=1e-5)
    assert "Doubled" in registered_classes()
    masks.unload()
    assert type(model[0]) is DoubledRenamed


def test_a_later_registration_replaces_the_earlier() -> None:
    class Other(MaskedLinear):
        pass

    assert register_mask_layer(nn.Linear)(Other) is Other
    assert wrapper_for(nn.Linear(2, 2)) is Other
