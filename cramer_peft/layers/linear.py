"""Masked linear layers: ``nn.Linear`` and the ``Conv1D`` of transformers' GPT-2 family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from cramer_peft.layers.masked_layer import RequestMaskLayer
from cramer_peft.layers.registry import register_mask_layer
from cramer_peft.masks import LayerSpec


@register_mask_layer(nn.Linear)
class MaskedLinear(RequestMaskLayer):
    """A masked ``nn.Linear``."""

    plain_class = nn.Linear

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        assert isinstance(base_layer, nn.Linear)
        return LayerSpec(base_layer.out_features, base_layer.in_features)

    def project(self, x: Tensor) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return functional.linear(x, weight)


@register_mask_layer(Conv1D)
class MaskedConv1D(RequestMaskLayer):
    """A masked transformers ``Conv1D``, which stores its weight as (in, out)."""

    plain_class = Conv1D

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
        # A compiled graph would run the frozen layer as an nn.Linear, which may round differently.
        return not torch.compiler.is_compiling() and super().is_product

    def project(self, x: Tensor) -> Tensor:
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return x @ weight

    def stored_weight(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous()
