"""The form ``low_rank``: an additive deviation from the identity, as a sum of outer products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cramer_peft.masks import low_rank_kernel
from cramer_peft.masks.form import LayerTensors, MaskForm, init_zero_or_random
from cramer_peft.masks.mask import FeatureMask, FeatureSpec, LayerMask, LayerSpec, Mask, Projection, Spec, spread


@dataclass(frozen=True)
class LowRankMask(LayerMask):
    """M = 1 + sum_k a_k b_k^T, with a of shape (rows, terms, out) and b of shape (rows, terms, in).

    ``(W * M) x = W x + sum_k a_k * W(b_k * x)``. ``active`` (rows,) marks the rows that have a request, or is None if
    all have. The other rows are copied from the frozen output, because 0 times a NaN in the terms would reach them.
    """

    a: Tensor
    b: Tensor
    active: Tensor | None

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        if self._kernel_fits(layer, x, batch_dim):
            weight, bias = layer.weight_matrix, layer.base_bias
            if torch.compiler.is_compiling():
                traced: Tensor = low_rank_kernel.traced_low_rank_linear(x, weight, bias, self.a, self.b, self.active)
                return traced
            return low_rank_kernel.low_rank_linear(x, weight, bias, self.a, self.b, self.active, layer.base_forward)
        frozen = layer.base_forward(x)
        if layer.feature_dim != -1:
            change = self._term_by_term(layer, x, batch_dim)
        elif self._fold_is_smaller(x):
            change = self._by_folding(layer, x, batch_dim)
        else:
            projected = layer.project(x.unsqueeze(-2) * spread(self.b, x, batch_dim))
            terms = projected * spread(self.a, frozen, batch_dim)
            change = terms.sum(-2, dtype=terms.dtype)  # autocast on a GPU would sum in float32
        output = frozen + change
        if self.active is None:
            return output
        return torch.where(spread(self.active[:, None].float(), frozen, batch_dim) > 0, output, frozen)

    def _kernel_fits(self, layer: Projection, x: Tensor, batch_dim: int) -> bool:
        """Return True if the CPU kernel can run here and is worth it: see :mod:`cramer_peft.masks.low_rank_kernel`."""
        rows, terms = max(self.a.shape[0], self.b.shape[0]), self.a.shape[1]
        return (
            layer.is_product
            and layer.feature_dim == -1
            and (rows == 1 or batch_dim in (0, -x.dim()))
            and low_rank_kernel.is_faster(x.numel() // max(x.shape[-1] * rows, 1), terms)
            and low_rank_kernel.is_usable(x, layer.weight_matrix, layer.base_bias)
        )

    def _term_by_term(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        where = (batch_dim, layer.feature_dim)
        terms = [
            layer.project(x * spread(self.b[:, k], x, *where)) * spread(self.a[:, k], x, *where)
            for k in range(self.a.shape[1])
        ]
        return torch.stack(terms).sum(0, dtype=terms[0].dtype)

    def _fold_is_smaller(self, x: Tensor) -> bool:
        """Return True if each row's change of the weight takes less room than the terms at each position.

        Only shapes decide, never requests, so that a row's bits do not depend on its neighbours.
        """
        _, terms, out_features = self.a.shape
        in_features = self.b.shape[-1]
        positions = x.numel() // max(x.shape[-1] * self.a.shape[0], 1)
        return 2 * in_features * out_features <= positions * terms * (in_features + out_features)

    def _by_folding(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        change = (self.a.transpose(1, 2) @ self.b).to(x.dtype) * layer.weight_matrix.to(x.dtype)
        if change.shape[0] == 1:
            batch_dim = 0  # one request for all: the rows of x may be anywhere
        rows_first = x.movedim(batch_dim, 0)
        flat = rows_first.reshape(change.shape[0], -1, x.shape[-1])
        changed = torch.bmm(flat, change.transpose(1, 2))
        return changed.reshape(*rows_first.shape[:-1], change.shape[1]).movedim(0, batch_dim)

    def weight_mask(self) -> Tensor:
        return 1 + self.a.transpose(1, 2) @ self.b

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        return weight * self.weight_mask()[row].to(weight.dtype), bias


class LowRankForm(MaskForm):
    """M = 1 + sum_k a_k b_k^T with unbounded factors, ``rank`` terms: can amplify, suppress and turn a sign."""

    name = "low_rank"

    def __init__(self, rank: int = 4) -> None:
        self.rank = rank

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        if isinstance(spec, FeatureSpec):
            return {"a": (spec.features,)}  # gates on features need no second factor
        assert isinstance(spec, LayerSpec)
        return {"a": (self.rank, spec.out_features), "b": (self.rank, spec.in_features)}

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        """Start a at 0 (the identity) and b at distinct random signs.

        Both at zero would have no gradient, and equal b would keep all terms equal for ever.
        """
        init_zero_or_random(head, identity)
        with torch.no_grad():
            start = 0
            for spec in specs.values():
                if isinstance(spec, FeatureSpec):
                    start += spec.features
                    continue
                assert isinstance(spec, LayerSpec)
                start += self.rank * spec.out_features  # past a
                signs = head.bias[start : start + self.rank * spec.in_features]
                signs.bernoulli_(0.5).mul_(2).sub_(1)
                start += self.rank * spec.in_features

    def build(
        self, tensors: Mapping[str, LayerTensors], strength: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, Mask]:
        masks: dict[str, Mask] = {}
        for entry, parts in tensors.items():
            a = parts["a"]
            if strength is not None:
                a = a * strength.to(a.dtype).reshape(-1, *[1] * (a.dim() - 1))
            if "b" in parts:
                masks[entry] = LowRankMask(a, parts["b"], active)
            else:
                values = 1 + a
                masks[entry] = FeatureMask(values if active is None else torch.where(active[:, None], values, 1.0))
        return masks
