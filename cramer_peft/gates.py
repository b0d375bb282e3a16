"""The forms a mask can take: from generator outputs to gates, and from gates to masked layers.

A mask M acts entrywise on a frozen weight W of shape (out, in). It is never materialised:
``diag(r) W diag(c) x = r * W(c * x)`` turns row and column gates into products on activations, and
``(W * (1 + sum_k a_k b_k^T)) x = W x + sum_k a_k * W(b_k * x)`` does so for the low-rank form.

Each form is one :class:`Gate`: it says how many generator outputs a layer needs, names them, and
builds one :class:`LayerGate` per layer, which applies itself to that layer's input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

LayerTensors = dict[str, Tensor]


@dataclass(frozen=True)
class LayerSpec:
    """The widths of one masked layer."""

    out_features: int
    in_features: int


class MaskableLayer(Protocol):
    """What a gate needs of the layer it is applied to."""

    def base_forward(self, x: Tensor) -> Tensor:
        """The frozen layer, bias included: (…, in) → (…, out)."""

    def project(self, x: Tensor) -> Tensor:
        """The frozen weight alone, without the bias: (…, in) → (…, out)."""

    @property
    def weight_matrix(self) -> Tensor:
        """The frozen weight, (out, in)."""

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen bias, (out,), or None."""


def spread(gate: Tensor, x: Tensor, batch_dim: int) -> Tensor:
    """View a gate of shape (rows, …, features) so that it broadcasts over ``x``.

    The rows go to ``batch_dim`` of ``x`` and the features to its last dimension; a dimension between
    them (the terms of ``low_rank``) stays next to the features.
    """
    batch_dim = batch_dim % x.dim()
    inner = gate.shape[1:]
    shape = [1] * (x.dim() - 1 + len(inner))
    shape[batch_dim] = gate.shape[0]
    shape[-len(inner) :] = inner
    return gate.reshape(shape).to(x.dtype)


class LayerGate(ABC):
    """The gates of one layer for the rows of one batch."""

    @abstractmethod
    def apply(self, layer: MaskableLayer, x: Tensor, batch_dim: int) -> Tensor:
        """Run ``layer`` on ``x`` with its weight masked, a mask for each row along ``batch_dim``."""

    @abstractmethod
    def weight_mask(self) -> Tensor:
        """The masks themselves, (rows, out, in)."""

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        """New (out, in) weight and bias that do what :meth:`apply` does for one row."""


@dataclass(frozen=True)
class RowColumnGate(LayerGate):
    """M = r c^T, with r of shape (rows, out) and c of shape (rows, in).

    A row gate of exactly 1 and column gates of exactly 1 leave the output bit for bit as it is,
    because multiplying by 1.0 is exact.
    """

    row: Tensor
    column: Tensor
    gate_bias: bool

    def apply(self, layer: MaskableLayer, x: Tensor, batch_dim: int) -> Tensor:
        output = layer.base_forward(x * spread(self.column, x, batch_dim))
        row = spread(self.row, output, batch_dim)
        bias = layer.base_bias
        if self.gate_bias or bias is None:
            return row * output
        return row * output + (1 - row) * bias  # exact where row == 1, unlike row * (output - bias) + bias

    def weight_mask(self) -> Tensor:
        return self.row.unsqueeze(-1) * self.column.unsqueeze(-2)

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        folded = weight * self.weight_mask()[row].to(weight.dtype)
        if bias is None or not self.gate_bias:
            return folded, bias
        return folded, bias * self.row[row].to(bias.dtype)


@dataclass(frozen=True)
class LowRankGate(LayerGate):
    """M = 1 + sum_k a_k b_k^T, with a of shape (rows, terms, out) and b of shape (rows, terms, in).

    ``active`` (rows,) marks the rows that have a request, or is None where all have: the others are
    taken from the frozen output, so that not even a NaN in the added terms could reach them.
    """

    a: Tensor
    b: Tensor
    active: Tensor | None

    def apply(self, layer: MaskableLayer, x: Tensor, batch_dim: int) -> Tensor:
        frozen = layer.base_forward(x)
        if self._fold_is_smaller(x):
            change = self._by_folding(layer, x, batch_dim)
        else:
            projected = layer.project(x.unsqueeze(-2) * spread(self.b, x, batch_dim))
            change = (projected * spread(self.a, frozen, batch_dim)).sum(-2)
        output = frozen + change
        if self.active is None:
            return output
        return torch.where(spread(self.active[:, None].float(), frozen, batch_dim) > 0, output, frozen)

    def _fold_is_smaller(self, x: Tensor) -> bool:
        """Whether each row's change of the weight takes less room than the terms at each position.

        One matmul by the folded change replaces one for each term. Only shapes decide, never requests, so
        a row's bits do not depend on its neighbours.
        """
        _, terms, out_features = self.a.shape
        in_features = self.b.shape[-1]
        positions = x.numel() // max(x.shape[-1] * self.a.shape[0], 1)
        return 2 * in_features * out_features <= positions * terms * (in_features + out_features)

    def _by_folding(self, layer: MaskableLayer, x: Tensor, batch_dim: int) -> Tensor:
        change = (self.a.transpose(1, 2) @ self.b).to(x.dtype) * layer.weight_matrix.to(x.dtype)
        if change.shape[0] == 1:
            batch_dim = 0  # one request for all: x may have the rows anywhere, or none
        rows_first = x.movedim(batch_dim, 0)
        flat = rows_first.reshape(change.shape[0], -1, x.shape[-1])
        changed = torch.bmm(flat, change.transpose(1, 2))
        return changed.reshape(*rows_first.shape[:-1], change.shape[1]).movedim(0, batch_dim)

    def weight_mask(self) -> Tensor:
        return 1 + self.a.transpose(1, 2) @ self.b

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        return weight * self.weight_mask()[row].to(weight.dtype), bias


class Gate(ABC):
    """One form of mask: what the generator makes for a layer, and what becomes of it."""

    name: ClassVar[str]
    has_strength: ClassVar[bool] = True

    @abstractmethod
    def parts(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        """Names and shapes (without the rows) of the generator outputs that one layer needs."""

    @abstractmethod
    def init_head(self, head: nn.Linear, specs: Mapping[str, LayerSpec], identity: bool) -> None:
        """Initialise the generator's last layer; with ``identity`` so that every mask starts at 1."""

    @abstractmethod
    def build(
        self,
        tensors: Mapping[str, LayerTensors],
        scale: Tensor | None,
        active: Tensor | None,
        training: bool,
    ) -> dict[str, LayerGate]:
        """Gates of every layer.

        Args:
            tensors: Per layer name, the tensors named by :meth:`parts`, each with rows first.
            scale: Strength per row, (rows,); 0 for rows without a request. None: 1 everywhere.
            active: Rows that have a request, (rows,) bool. None: all have.
            training: Whether to draw noise, where the form has any.
        """

    def layer_size(self, spec: LayerSpec) -> int:
        """Number of generator outputs for one layer."""
        return sum(math.prod(shape) for shape in self.parts(spec).values())

    def split(self, flat: Tensor, specs: Mapping[str, LayerSpec]) -> dict[str, LayerTensors]:
        """Cut the generator's output (rows, total) into named tensors per layer."""
        shapes = [(name, part, shape) for name, spec in specs.items() for part, shape in self.parts(spec).items()]
        pieces = flat.split([math.prod(shape) for _, _, shape in shapes], dim=-1)
        tensors: dict[str, LayerTensors] = {name: {} for name in specs}
        for (name, part, shape), piece in zip(shapes, pieces, strict=True):
            tensors[name][part] = piece.reshape(-1, *shape).contiguous()  # bits must not depend on strides
        return tensors


class ScaleGate(Gate):
    """Row and column gates 2 * sigmoid(z) in (0, 2): the identity at z = 0, no extra matmul."""

    name = "scale"

    def __init__(self, gate_bias: bool = True) -> None:
        self.gate_bias = gate_bias

    def parts(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {"row_logits": (spec.out_features,), "column_logits": (spec.in_features,)}

    def init_head(self, head: nn.Linear, specs: Mapping[str, LayerSpec], identity: bool) -> None:
        _init_zero_or_random(head, identity)

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, LayerGate]:
        def gate(logits: Tensor) -> Tensor:
            value = 2 * torch.sigmoid(logits)
            if scale is None:
                return value
            # At strength 1 the value itself, which 1 + (value - 1) rounds: a row's bits must not depend on
            # whether another row has a strength.
            return torch.where(scale[:, None] == 1, value, 1 + scale[:, None] * (value - 1))

        return {
            name: RowColumnGate(gate(parts["row_logits"]), gate(parts["column_logits"]), self.gate_bias)
            for name, parts in tensors.items()
        }


class LowRankMaskGate(Gate):
    """M = 1 + sum_k a_k b_k^T with unbounded factors: can amplify, suppress and turn a sign round."""

    name = "low_rank"

    def __init__(self, rank: int = 4) -> None:
        self.rank = rank

    def parts(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {"a": (self.rank, spec.out_features), "b": (self.rank, spec.in_features)}

    def init_head(self, head: nn.Linear, specs: Mapping[str, LayerSpec], identity: bool) -> None:
        """a starts at 0 (the identity); b at distinct random signs.

        Both at zero would have no gradient, and equal b would keep all terms equal for ever.
        """
        _init_zero_or_random(head, identity)
        with torch.no_grad():
            start = 0
            for spec in specs.values():
                start += self.rank * spec.out_features  # past a
                signs = head.bias[start : start + self.rank * spec.in_features]
                signs.bernoulli_(0.5).mul_(2).sub_(1)
                start += self.rank * spec.in_features

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, LayerGate]:
        gates: dict[str, LayerGate] = {}
        for name, parts in tensors.items():
            a, b = parts["a"], parts["b"]
            if scale is not None:
                a = a * scale[:, None, None]
            gates[name] = LowRankGate(a, b, active)
        return gates


class TopKGate(Gate):
    """The paper's binary gates: the top k of all row and column logits, over all layers together.

    k = ceil((1 - drop_ratio) d) of the d gates are 1 (CRAMER, ICML 2026, section "Mask"). In training,
    Gumbel(0) noise is added to the logits before the top k is taken, and the gradient is that of
    softmax(z / temperature) (straight-through).
    """

    name = "topk"
    has_strength = False

    def __init__(self, drop_ratio: float = 0.1, temperature: float = 0.7, gate_bias: bool = False) -> None:
        self.drop_ratio = drop_ratio
        self.temperature = temperature
        self.gate_bias = gate_bias

    def parts(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {"row_logits": (spec.out_features,), "column_logits": (spec.in_features,)}

    def init_head(self, head: nn.Linear, specs: Mapping[str, LayerSpec], identity: bool) -> None:
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def kept(self, total: int) -> int:
        """How many of ``total`` gates stay open."""
        return math.ceil((1 - self.drop_ratio) * total - 1e-9)  # 1e-9: 0.95 * 20 must not round up to 20

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, LayerGate]:
        shapes = [(name, part, value.shape[-1]) for name, parts in tensors.items() for part, value in parts.items()]
        logits = torch.cat([value for parts in tensors.values() for value in parts.values()], dim=-1)
        gates = self._binary(logits, training)
        if active is not None:
            gates = torch.where(active[:, None], gates, torch.ones_like(gates))
        values: dict[str, LayerTensors] = {name: {} for name in tensors}
        for (name, part, _), value in zip(shapes, gates.split([n for *_, n in shapes], dim=-1), strict=True):
            values[name][part] = value
        return {
            name: RowColumnGate(parts["row_logits"], parts["column_logits"], self.gate_bias)
            for name, parts in values.items()
        }

    def _binary(self, logits: Tensor, training: bool) -> Tensor:
        noisy = logits
        if training:
            exponential = torch.empty_like(logits).exponential_()
            noisy = logits - exponential.log()  # -log of an Exponential(1) draw is a Gumbel(0) draw
        keep = noisy.detach().topk(self.kept(logits.shape[-1]), dim=-1).indices
        hard = torch.zeros_like(logits).scatter(-1, keep, 1.0)
        soft = torch.softmax(noisy / self.temperature, dim=-1)
        return hard + (soft - soft.detach())  # the bracket is exactly 0, so the gates stay binary


def _init_zero_or_random(head: nn.Linear, identity: bool) -> None:
    if identity:
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=0.5 / math.sqrt(head.in_features))
    if identity:
        nn.init.zeros_(head.bias)
    else:
        nn.init.normal_(head.bias, std=0.3)


GATES: dict[str, type[Gate]] = {gate.name: gate for gate in (LowRankMaskGate, ScaleGate, TopKGate)}


def make_gate(config: Any) -> Gate:
    """The gate that a :class:`~cramer_peft.RequestMaskConfig` describes."""
    if config.gate == LowRankMaskGate.name:
        return LowRankMaskGate(rank=config.rank)
    if config.gate == ScaleGate.name:
        return ScaleGate(gate_bias=config.gate_bias)
    return TopKGate(drop_ratio=config.drop_ratio, temperature=config.temperature_start, gate_bias=config.gate_bias)
