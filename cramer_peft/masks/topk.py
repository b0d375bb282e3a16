"""The form ``topk``: the paper's binary gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cramer_peft.masks.form import LayerTensors, MaskForm, row_column_parts
from cramer_peft.masks.mask import FeatureMask, Mask, RowColumnMask, Spec
from cramer_peft.masks.tracing import computed_once

# The temperature from start to end, by the share of the training that is done. The paper found the cosine best.
SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": lambda start, end, done: end + (start - end) * 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda start, end, done: start + (end - start) * done,
    "exponential": lambda start, end, done: start ** (1 - done) * end**done,
}


class TopKForm(MaskForm):
    """The paper's binary gates: the top k of all row and column logits, over all entries together.

    k = ceil((1 - drop_ratio) d) of the d gates are 1 (CRAMER, ICML 2026, section "Mask"). In training, Gumbel(0) noise
    is added to the logits first, and the gradient is that of softmax(z / temperature) without the noise
    (straight-through). ``shared`` trains with one mask for all rows, from their mean logits and one draw of noise.
    """

    name = "topk"
    has_strength = False
    draws_noise = True

    def __init__(
        self, drop_ratio: float = 0.1, temperature: float = 0.7, gate_bias: bool = False, shared: bool = False
    ) -> None:
        self.drop_ratio = drop_ratio
        self.temperature = temperature
        self.gate_bias = gate_bias
        self.shared = shared

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        return row_column_parts(spec)

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def kept(self, total: int) -> int:
        """Return how many of ``total`` gates stay open."""
        return math.ceil((1 - self.drop_ratio) * total - 1e-9)  # 1e-9: 0.95 * 20 must not round up to 20

    def build(
        self, tensors: Mapping[str, LayerTensors], strength: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, Mask]:
        logits = torch.cat([value for parts in tensors.values() for value in parts.values()], dim=-1)
        if self.shared and training:
            counted = logits if active is None or not bool(active.any()) else logits[active.bool()]
            gates = self._binary(counted.mean(0, keepdim=True), training).expand_as(logits)
        else:
            gates = self._binary(logits, training)
        if active is not None:
            gates = torch.where(active[:, None], gates, torch.ones_like(gates))
        sizes = [value.shape[-1] for parts in tensors.values() for value in parts.values()]
        pieces = iter(gates.split(sizes, dim=-1))
        masks: dict[str, Mask] = {}
        for entry, parts in tensors.items():
            own = {part: next(pieces) for part in parts}
            if torch.compiler.is_compiling():
                own = {part: computed_once(value) for part, value in own.items()}
            if "column_logits" in own:
                masks[entry] = RowColumnMask(own["row_logits"], own["column_logits"], self.gate_bias)
            else:
                masks[entry] = FeatureMask(own["row_logits"])
        return masks

    def _binary(self, logits: Tensor, training: bool) -> Tensor:
        noisy = logits
        if training:
            exponential = torch.empty_like(logits).exponential_()
            noisy = logits - exponential.log()  # -log of an Exponential(1) draw is a Gumbel(0) draw
        keep = noisy.detach().topk(self.kept(logits.shape[-1]), dim=-1).indices
        hard = torch.zeros_like(logits).scatter(-1, keep, 1.0)
        soft = torch.softmax(logits / self.temperature, dim=-1)  # without the noise, as in the paper
        return hard + (soft - soft.detach())  # the bracket is exactly 0, so the gates stay binary
