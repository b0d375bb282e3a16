"""The form ``scale``: row and column gates between 0 and 2."""

from __future__ import annotations

import torch
from torch import Tensor

from cramer_peft.masks.signed import SignedForm


class ScaleForm(SignedForm):
    """Row and column gates 2 * sigmoid(z) in (0, 2): the identity at z = 0, no extra matmul."""

    name = "scale"

    def full_gates(self, logits: Tensor) -> Tensor:
        return 2 * torch.sigmoid(logits)

    def scaled_deviation(self, logits: Tensor, strength: Tensor) -> Tensor:
        return strength * (self.full_gates(logits) - 1)
