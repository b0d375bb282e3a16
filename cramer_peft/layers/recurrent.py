"""Masked recurrent layers: ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cramer_peft.errors import RequestError
from cramer_peft.gates import FeatureGate, FeatureSpec, Spec
from cramer_peft.layers.passthrough import PassthroughMaskLayer
from cramer_peft.layers.registry import register_mask_layer


@register_mask_layer(nn.RNN)
@register_mask_layer(nn.GRU)
@register_mask_layer(nn.LSTM)
class MaskedRecurrent(PassthroughMaskLayer):
    """A masked ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``.

    The parts are ``input``, gates on the features of the input of the first layer, and ``output``, gates on
    the features of ``output``, those of the backward direction included. Nothing inside the cell is masked.

    The last states (``h_n``, and ``c_n``) are returned as the cell computed them, without the gates of
    ``output``: they are what is fed back, so that a sequence run in two pieces gives what it gives in one.
    A model that reads ``h_n`` alone is masked by ``input`` only.

    The rows are in the module's own batch dimension, 0 with ``batch_first`` and else 1, whatever
    ``batch_dim`` the configuration names. A packed sequence is gated element by element, each by its row.
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
        self, gates: Mapping[str, Any], input: Tensor | PackedSequence, hx: Any = None
    ) -> tuple[Tensor | PackedSequence, Any]:
        """The module under ``gates``.

        Args:
            gates: Gates of the parts ``input`` and ``output``; a part that is not there stays frozen.
            input: (length, rows, features), (rows, length, features) with ``batch_first``, (length, features)
                without rows, or a packed sequence.
            hx: The first states, as the module takes them.

        Returns:
            What the module returns: ``output``, gated, and the last states, as computed.

        Raises:
            RequestError: If there are not as many requests as rows.
        """
        if "input" in gates:
            input = self._gated(gates["input"], input)
        output, states = _run(self.base_layer, input, hx)
        if "output" in gates:
            output = self._gated(gates["output"], output)
        return output, states

    def fold_parts(self, gates: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        if "input" not in gates:
            return {}
        names = ["weight_ih_l0", "weight_ih_l0_reverse"] if self.base_layer.bidirectional else ["weight_ih_l0"]
        columns = gates["input"].row(row)
        weights: dict[str, Tensor] = {name: getattr(self.base_layer, name) for name in names}
        return {name: weight * columns.to(weight.dtype) for name, weight in weights.items()}

    def _gated(self, gate: FeatureGate, x: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(x, PackedSequence):
            return x._replace(data=self._gated_elements(gate, x))
        if x.dim() != 3:
            if gate.rows != 1:
                raise RequestError(
                    f"module {self.module_name!r}: its input of shape {tuple(x.shape)} is one sequence without rows, "
                    f"but {gate.rows} requests were given. Give one request, or a batch of sequences."
                )
            return gate.multiply(x, 0)
        batch_dim = 0 if self.base_layer.batch_first else 1
        return self.fitted(gate, x, batch_dim).multiply(x, batch_dim)

    def _gated_elements(self, gate: FeatureGate, packed: PackedSequence) -> Tensor:
        first_step = packed.data[: int(packed.batch_sizes[0])]  # one element of each row
        gate = self.fitted(gate, first_step, 0)
        if gate.rows != 1:
            rows = element_rows(packed)
            gate = gate.map_rows(lambda value: value[rows])
        return gate.multiply(packed.data, 0)


def _run(module: nn.Module, input: Tensor | PackedSequence, hx: Any) -> Any:
    """Run the module; in eval mode on a GPU, too, where cuDNN has gradients for training mode alone."""
    data = input.data if isinstance(input, PackedSequence) else input
    if module.training or not (torch.is_grad_enabled() and data.requires_grad and _by_cudnn(data)):
        return module(input, hx)
    # The same attributes under another object, so that no other thread sees the mode; without dropout it is eval's.
    training = object.__new__(type(module))
    object.__setattr__(training, "__dict__", {**vars(module), "training": True, "dropout": 0.0})
    return training(input, hx)


def _by_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.backends.cudnn.enabled


def element_rows(packed: PackedSequence) -> Tensor:
    """Which row of the batch, in the caller's order, each packed element belongs to, (elements,)."""
    sizes = packed.batch_sizes
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    rows = (torch.arange(len(starts), device=starts.device) - starts).to(packed.data.device)
    return rows if packed.sorted_indices is None else packed.sorted_indices[rows]
