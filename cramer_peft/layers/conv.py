"""Masked convolutions: ``nn.Conv1d`` and ``nn.Conv2d``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cramer_peft.errors import RequestError
from cramer_peft.gates import LayerGate, LayerSpec
from cramer_peft.layers.passthrough import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer


class MaskedConvolution(PassthroughMaskLayer):
    """A masked convolution: the mask has one entry for each pair of an output and an input channel.

    All positions of the kernel share the entry. With ``groups``, the entries between channels of different
    groups act on nothing, as there is no weight between them. The rows are in dimension 0, whatever
    ``batch_dim`` the configuration names.
    """

    linear: ClassVar[bool] = False

    @classmethod
    def spec(cls, base_layer: nn.Module) -> LayerSpec:
        assert isinstance(base_layer, (nn.Conv1d, nn.Conv2d))
        return LayerSpec(base_layer.out_channels, base_layer.in_channels)

    def project(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer._conv_forward(x, self.base_layer.weight, None)  # type: ignore[operator]
        return output

    def masked_forward(self, gates: Mapping[str, Any], input: Tensor) -> Tensor:
        """The convolution under ``gates``.

        Args:
            gates: Gates of the part ``""``.
            input: (rows, channels, …), or (channels, …) without rows.

        Raises:
            RequestError: If there are not as many requests as rows.
        """
        gate: LayerGate = gates[""]
        if input.dim() != -self.feature_dim:
            return self.fitted(gate, input, 0).apply(self, input, 0)
        if gate.rows != 1:
            raise RequestError(
                f"module {self.module_name!r}: its input of shape {tuple(input.shape)} is one sample without rows, but "
                f"{gate.rows} requests were given. Give one request, or a batch of samples."
            )
        return gate.apply(self, input, 0)

    def fold(self, gates: LayerGate, row: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the convolution with one row's gates folded in, as new tensors."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        channels = weight.new_ones(self.out_features, self.in_features)
        mask, bias = gates.fold(channels, self.base_bias, row)
        mask = within_groups(mask, self.base_layer.groups)  # type: ignore[arg-type]
        return weight * mask.reshape(*mask.shape, *[1] * (weight.dim() - 2)), bias


@register_mask_layer(nn.Conv1d)
class MaskedConvolution1d(MaskedConvolution):
    """A masked ``nn.Conv1d``, on (rows, channels, length)."""

    feature_dim = -2


@register_mask_layer(nn.Conv2d)
class MaskedConvolution2d(MaskedConvolution):
    """A masked ``nn.Conv2d``, on (rows, channels, height, width)."""

    feature_dim = -3


def within_groups(mask: Tensor, groups: int) -> Tensor:
    """The entries of a mask between channels of one group: (out, in) → (out, in / groups)."""
    out_channels, in_channels = mask.shape
    blocks = mask.reshape(groups, out_channels // groups, groups, in_channels // groups)
    return torch.diagonal(blocks, dim1=0, dim2=2).movedim(-1, 0).reshape(out_channels, in_channels // groups)
