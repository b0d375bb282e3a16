"""Masked linear layers: ``nn.Linear`` and the ``Conv1D`` of transformers' GPT-2 family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from transformers.pytorch_utils import Conv1D

from cramer_peft.gates import LayerSpec
from cramer_peft.layers.base import RequestMaskLayer
from cramer_peft.layers.registry import register_mask_layer


@register_mask_layer(nn.Linear)
class MaskedLinear(RequestMaskLayer):
    """A masked ``nn.Linear``."""

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        assert isinstance(base_layer, nn.Linear)
        return LayerSpec(base_layer.out_features, base_layer.in_features)

    @property
    def is_product(self) -> bool:
        return _is_untouched(self.base_layer, nn.Linear)

    def project(self, x: Tensor) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return functional.linear(x, weight)


@register_mask_layer(Conv1D)
class MaskedConv1D(RequestMaskLayer):
    """A masked transformers ``Conv1D``, which stores its weight as (in, out)."""

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        assert isinstance(base_layer, Conv1D)
        in_features, out_features = base_layer.weight.shape
        return LayerSpec(out_features, in_features)

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        return super().masked_weight(base_layer).T

    @property
    def is_product(self) -> bool:
        # In a compiled graph the frozen layer would be an nn.Linear's, whose bits may differ.
        return not torch.compiler.is_compiling() and _is_untouched(self.base_layer, Conv1D)

    def project(self, x: Tensor) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return x @ weight

    def stored_weight(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous()


def _is_untouched(linear: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of ``linear`` runs the forward of ``kind`` and nothing else."""
    return (
        type(linear).forward is kind.forward
        and "forward" not in linear.__dict__
        and not (linear._forward_hooks or linear._forward_pre_hooks)
        and not (_global_forward_hooks or _global_forward_pre_hooks)
    )
