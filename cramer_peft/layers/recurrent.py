"""Masked recurrent layers: ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cramer_peft.errors import RequestError
from cramer_peft.layers.masked_layer import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer
from cramer_peft.masks import FeatureMask, FeatureSpec, Spec


@register_mask_layer(nn.RNN)
@register_mask_layer(nn.GRU)
@register_mask_layer(nn.LSTM)
class MaskedRecurrent(PassthroughMaskLayer):
    """A masked ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.

    Its parts are ``input``, gates on the features of the first layer's input, and ``output``, gates on the features of
    ``output``. Nothing inside the cell is masked, nor are the last states: they are fed back, so a sequence that is
    run in two pieces gives the same as in one. In a model that reads ``h_n`` alone only ``input`` has an effect.

    The rows are in the module's own batch dimension; the configuration's ``batch_dim`` is not used. In a packed
    sequence each element is masked by its own row.
    """

    linear: ClassVar[bool] = False

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        assert isinstance(base_layer, nn.RNNBase)
        directions = 2 if base_layer.bidirectional else 1
        return {
            "input": FeatureSpec(base_layer.input_size),
            "output": FeatureSpec(directions * (base_layer.proj_size or base_layer.hidden_size)),
        }

    @classmethod
    def unfoldable_parts(cls) -> tuple[str, ...]:
        return ("output",)

    @classmethod
    def masked_weight(cls, base_layer: nn.Module) -> Tensor:
        weight: Tensor = base_layer.weight_ih_l0  # type: ignore[assignment]
        return weight

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        assert isinstance(base_layer, nn.RNNBase)
        return [weight for layer in base_layer.all_weights for weight in layer]

    def masked_forward(
        self, masks: Mapping[str, Any], input: Tensor | PackedSequence, hx: Any = None
    ) -> tuple[Tensor | PackedSequence, Any]:
        """Run the module under ``masks`` (part → mask); the last states are as the cell computed them."""
        if "input" in masks:
            input = self._masked(masks["input"], input)
        output, states = _run(self.base_layer, input, hx)
        if "output" in masks:
            output = self._masked(masks["output"], output)
        return output, states

    def fold_parts(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        if "input" not in masks:
            return {}
        names = ["weight_ih_l0", "weight_ih_l0_reverse"] if self.base_layer.bidirectional else ["weight_ih_l0"]
        columns = masks["input"].row(row)
        weights: dict[str, Tensor] = {name: getattr(self.base_layer, name) for name in names}
        return {name: weight * columns.to(weight.dtype) for name, weight in weights.items()}

    def _masked(self, mask: FeatureMask, x: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(x, PackedSequence):
            return x._replace(data=self._masked_elements(mask, x))
        if x.dim() != 3:
            if mask.rows != 1:
                raise RequestError(
                    f"module {self.module_name!r}: its input of shape {tuple(x.shape)} is one sequence without rows, "
                    f"but {mask.rows} requests were given. Give one request, or a batch of sequences."
                )
            return mask.multiply(x, 0)
        batch_dim = 0 if self.base_layer.batch_first else 1
        return self.fitted(mask, x, batch_dim).multiply(x, batch_dim)

    def _masked_elements(self, mask: FeatureMask, packed: PackedSequence) -> Tensor:
        first_step = packed.data[: int(packed.batch_sizes[0])]  # one element of each row
        mask = self.fitted(mask, first_step, 0)
        if mask.rows != 1:
            rows = element_rows(packed)
            mask = mask.map_rows(lambda value: value[rows])
        return mask.multiply(packed.data, 0)


def _run(module: nn.Module, input: Tensor | PackedSequence, hx: Any) -> Any:
    """Run the module, with gradients even in eval mode on a GPU, where cuDNN gives them in training mode alone."""
    data = input.data if isinstance(input, PackedSequence) else input
    if module.training or not (torch.is_grad_enabled() and data.requires_grad and _by_cudnn(data)):
        return module.forward(input, hx)
    # A second object in training mode, so that no other thread sees the mode. Without dropout it computes as in eval.
    training = object.__new__(type(module))
    object.__setattr__(training, "__dict__", {**vars(module), "training": True, "dropout": 0.0})
    return training.forward(input, hx)


def _by_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.backends.cudnn.enabled


def element_rows(packed: PackedSequence) -> Tensor:
    """Return the row of the batch, in the caller's order, that each packed element belongs to, (elements,)."""
    sizes = packed.batch_sizes
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rows = (torch.arange(len(starts), device=starts.device) - starts).to(packed.data.device)
    return rows if packed.sorted_indices is None else packed.sorted_indices[rows]
