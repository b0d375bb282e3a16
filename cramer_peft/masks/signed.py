"""The form ``signed``: row and column gates 1 + z without bounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cramer_peft.masks.form import LayerTensors, MaskForm, init_zero_or_random, row_column_parts
from cramer_peft.masks.mask import FeatureMask, Mask, RowColumnMask, Spec
from cramer_peft.masks.tracing import computed_once


class SignedForm(MaskForm):
    """Row and column gates 1 + z without bounds: no extra matmul, and a gate may turn a unit's sign.

    A strength above 1 scales only gates above 1; those below 1 stay as they are at strength 1.
    """

    name = "signed"

    def __init__(self, gate_bias: bool = True) -> None:
        self.gate_bias = gate_bias

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        return row_column_parts(spec)

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        init_zero_or_random(head, identity)

    def build(
        self, tensors: Mapping[str, LayerTensors], strength: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, Mask]:
        masks: dict[str, Mask] = {}
        for entry, parts in tensors.items():
            row = self._gates(parts["row_logits"], strength, active)
            if "column_logits" in parts:
                column = self._gates(parts["column_logits"], strength, active)
                masks[entry] = RowColumnMask(row, column, self.gate_bias)
            else:
                masks[entry] = FeatureMask(row)
        return masks

    def _gates(self, logits: Tensor, strength: Tensor | None, active: Tensor | None) -> Tensor:
        gates = self.full_gates(logits)
        if strength is not None:
            # Rows of strength 1 take the gates themselves, because 1 + (gate - 1) rounds: their bits must not depend on
            # the strength of another row.
            scaled = 1 + self.scaled_deviation(logits, strength[:, None])
            gates = torch.where(strength[:, None] == 1, gates, scaled)
            if active is not None:  # selected, because 0 * NaN would reach a row without a request
                gates = torch.where(active[:, None], gates, 1.0)
        return computed_once(gates) if torch.compiler.is_compiling() else gates

    def full_gates(self, logits: Tensor) -> Tensor:
        """Return the gates at strength 1."""
        return 1 + logits

    def scaled_deviation(self, logits: Tensor, strength: Tensor) -> Tensor:
        """Return the gates' deviation from 1 at a strength of shape (rows, 1)."""
        # From z itself, because (1 + z) - 1 rounds. Negative z stays at strength 1 at most: a gate that 1 closes would
        # turn the sign of its unit at 2.
        return torch.where(logits < 0, strength.clamp(max=1), strength) * logits
