"""Masked convolutions: ``nn.Conv1d`` and ``nn.Conv2d``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cramer_peft.errors import RequestError
from cramer_peft.layers.masked_layer import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer
from cramer_peft.masks import LayerMask, LayerSpec


class MaskedConvolution(PassthroughMaskLayer):
    """A masked convolution: the mask has one entry for each pair of an output and an input channel.

    All positions of the kernel share the entry; entries between channels of different ``groups`` have no effect. The
    rows are in dimension 0; the configuration's ``batch_dim`` is not used.
    """

    linear: ClassVar[bool] = False

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        assert isinstance(base_layer, (nn.Conv1d, nn.Conv2d))
        return LayerSpec(base_layer.out_channels, base_layer.in_channels)

    def project(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer._conv_forward(x, self.base_layer.weight, None)  # type: ignore[operator]
        return output

    def masked_forward(self, masks: Mapping[str, Any], input: Tensor) -> Tensor:
        """Run the convolution under ``masks`` on (rows, channels, …), or (channels, …) without rows."""
        mask: LayerMask = masks[""]
        if input.dim() != -self.feature_dim:
            return self.fitted(mask, input, 0).apply(self, input, 0)
        if mask.rows != 1:
            raise RequestError(
                f"module {self.module_name!r}: its input of shape {tuple(input.shape)} is one sample without rows, but "
                f"{mask.rows} requests were given. Give one request, or a batch of samples."
            )
        return mask.apply(self, input, 0)

    def fold(self, mask: LayerMask, row: int) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the convolution with one row's mask folded in, as new tensors."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        channels = weight.new_ones(self.out_features, self.in_features)
        factors, bias = mask.fold(channels, self.base_bias, row)
        factors = within_groups(factors, self.base_layer.groups)  # type: ignore[arg-type]
        return weight * factors.reshape(*factors.shape, *[1] * (weight.dim() - 2)), bias


@register_mask_layer(nn.Conv1d)
class MaskedConvolution1d(MaskedConvolution):
    """A masked ``nn.Conv1d``, on (rows, channels, length)."""

    feature_dim = -2


@register_mask_layer(nn.Conv2d)
class MaskedConvolution2d(MaskedConvolution):
    """A masked ``nn.Conv2d``, on (rows, channels, height, width)."""

    feature_dim = -3


def within_groups(mask: Tensor, groups: int) -> Tensor:
    """Return the entries of a mask between channels of one group: (out, in) → (out, in / groups)."""
    out_channels, in_channels = mask.shape
    blocks = mask.reshape(groups, out_channels // groups, groups, in_channels // groups)
    return torch.diagonal(blocks, dim1=0, dim2=2).movedim(-1, 0).reshape(out_channels, in_channels // groups)
