"""The forms a mask can take: from generator outputs to gates, and from gates to masked layers.

A mask M acts entrywise on a frozen weight W of shape (out, in). It is never materialised:
``diag(r) W diag(c) x = r * W(c * x)`` turns row and column gates into products on activations, and
``(W * (1 + sum_k a_k b_k^T)) x = W x + sum_k a_k * W(b_k * x)`` does so for the low-rank form.

Each form is one :class:`Gate`: it says how many generator outputs a layer needs, names them, and
builds one :class:`LayerGate` per layer, which applies itself to that layer's input.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Union

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from cramer_peft import row_pieces, row_weights

LayerTensors = dict[str, Tensor]


@dataclass(frozen=True)
class LayerSpec:
    """The widths of one masked weight."""

    out_features: int
    in_features: int


@dataclass(frozen=True)
class FeatureSpec:
    """The number of features that are gated by themselves: a diagonal mask, beside any weight."""

    features: int


Spec = Union[LayerSpec, FeatureSpec]


class Projection(Protocol):
    """What a gate needs of the weight it is applied to."""

    @property
    def feature_dim(self) -> int:
        """Dimension that holds the features in input and output, counted from the end."""

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


def is_product(layer: Projection) -> bool:
    """Whether ``layer.base_forward`` is the product with ``weight_matrix`` plus the bias, and no more.

    Then other ways to the same result may take its place. A layer says so by ``is_product``; one that says nothing may
    do anything.
    """
    return getattr(layer, "is_product", False)


@dataclass(frozen=True)
class WeightProjection:
    """A projection by tensors at hand, for layers that hold several weights.

    Attributes:
        weight_matrix: (out, in)
        base_bias: (out,), or None.
    """

    weight_matrix: Tensor
    base_bias: Tensor | None = None
    feature_dim: int = -1
    is_product: bool = True

    def base_forward(self, x: Tensor) -> Tensor:
        """The weight and the bias on ``x``."""
        return functional.linear(x, self.weight_matrix, self.base_bias)

    def project(self, x: Tensor) -> Tensor:
        """The weight alone on ``x``."""
        return functional.linear(x, self.weight_matrix)


@dataclass(frozen=True)
class _Masked:
    """A projection that is masked already, for another gate around it."""

    projection: Projection
    gate: LayerGate
    batch_dim: int
    is_product: bool = False

    @property
    def feature_dim(self) -> int:
        return self.projection.feature_dim

    @property
    def base_bias(self) -> Tensor | None:
        return self.projection.base_bias

    def base_forward(self, x: Tensor) -> Tensor:
        return self.gate.apply(self.projection, x, self.batch_dim)

    @property
    def weight_matrix(self) -> Tensor:
        raise NotImplementedError  # only low_rank asks for it, which is always the innermost

    def project(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def spread(gate: Tensor, x: Tensor, batch_dim: int, feature_dim: int = -1) -> Tensor:
    """View a gate of shape (rows, …, features) so that it broadcasts over ``x``.

    The rows go to ``batch_dim`` of ``x`` and the features to ``feature_dim``; a dimension between them
    (the terms of ``low_rank``, with the features last) stays next to the features.
    """
    inner = gate.shape[1:]
    shape = [1] * (x.dim() - 1 + len(inner))
    if gate.shape[0] != 1:
        shape[batch_dim % x.dim()] = gate.shape[0]
    if len(inner) == 1:
        shape[feature_dim] = inner[0]
    else:
        shape[-len(inner) :] = inner
    return gate.reshape(shape).to(x.dtype)


def _laid_out_alike(value: Tensor, x: Tensor) -> Tensor:
    """``value`` (shaped as ``x``) with the strides of ``x``, by which kernels are chosen, and so how they round.

    A product takes the strides of its input only where these leave no gaps and no dimension is 1 long. In a compiled
    graph, and where somebody transforms what is done with ``x``, it is left as it is.
    """
    if torch.compiler.is_compiling() or x.is_nested or value.shape != x.shape or value.stride() == x.stride():
        return value
    if 0 in x.stride() or not row_weights.is_plain(x):  # 0: repeated, with room for one
        return value
    return torch.empty_strided(x.shape, x.stride(), dtype=value.dtype, device=x.device).copy_(value)


@dataclass(frozen=True)
class RowGates:
    """Gates of one part of a layer, for the rows of one batch.

    Attributes:
        shared: Whether the one row stands for a batch of any size.
    """

    shared: bool = field(default=False, kw_only=True)

    @property
    def rows(self) -> int:
        """Number of requests."""
        return max(value.shape[0] for value in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Everything that holds one row per request, or one row for all."""
        found: list[Tensor] = []
        self._map(lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
        return found

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same gates with ``function`` applied to each tensor that has a row for each request."""
        rows = self.rows
        return self._map(lambda value: function(value) if value.shape[0] == rows else value)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, tuple):
                changed[item.name] = tuple(gate._map(function) for gate in value)
        return self.with_values(**changed)

    def with_values(self, **changed: Any) -> Self:
        """A copy with other values; ``dataclasses.replace``, which torch.compile cannot trace before torch 2.7."""
        return type(self)(**{**{item.name: getattr(self, item.name) for item in fields(self)}, **changed})


@dataclass(frozen=True)
class LayerGate(RowGates, ABC):
    """The gates of one weight."""

    @abstractmethod
    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        """Run ``layer`` on ``x`` with its weight masked, a mask for each row along ``batch_dim``."""

    @abstractmethod
    def weight_mask(self) -> Tensor:
        """The masks themselves, (rows, out, in)."""

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        """New (out, in) weight and bias that do what :meth:`apply` does for one row."""


@dataclass(frozen=True)
class FeatureGate(RowGates):
    """Gates on features, (rows, features): a product with the activations and nothing else."""

    values: Tensor

    def multiply(self, x: Tensor, batch_dim: int, feature_dim: int = -1) -> Tensor:
        """``x`` times the gates; a gate of exactly 1 leaves its bits."""
        return _laid_out_alike(x * spread(self.values, x, batch_dim, feature_dim), x)

    def row(self, row: int) -> Tensor:
        """The gates of one row, (features,)."""
        return self.values[row if self.values.shape[0] > 1 else 0]


@dataclass(frozen=True)
class RowColumnGate(LayerGate):
    """M = r c^T, with r of shape (rows, out) and c of shape (rows, in).

    A row gate of exactly 1 and column gates of exactly 1 leave the output bit for bit as it is,
    because multiplying by 1.0 is exact.
    """

    row: Tensor
    column: Tensor
    gate_bias: bool

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        if is_product(layer) and layer.feature_dim == -1 and (self.rows == 1 or batch_dim in (0, -x.dim())):
            weight, bias, gates = layer.weight_matrix, layer.base_bias, (self.row, self.column)
            made = row_pieces.row_column_linear(x, weight, bias, *gates, self.gate_bias, layer.base_forward)
            if made is not None:
                return made
        output = layer.base_forward(_laid_out_alike(x * spread(self.column, x, batch_dim, layer.feature_dim), x))
        row = spread(self.row, output, batch_dim, layer.feature_dim)
        # In place where it may be, since a large tensor costs more to get than to fill.
        in_place = is_product(layer) and not torch.is_grad_enabled()
        output = output.mul_(row) if in_place else row * output
        bias = layer.base_bias
        if self.gate_bias or bias is None:
            return output
        # Exact where row == 1, unlike row * (output - bias) + bias.
        return output + (1 - row) * spread(bias[None], output, batch_dim, layer.feature_dim)

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

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        if self._has_a_faster_way(layer, x, batch_dim):
            weight, bias = layer.weight_matrix, layer.base_bias
            if torch.compiler.is_compiling():
                traced: Tensor = row_weights.traced_low_rank_linear(x, weight, bias, self.a, self.b, self.active)
                return traced
            return row_weights.low_rank_linear(x, weight, bias, self.a, self.b, self.active, layer.base_forward)
        frozen = layer.base_forward(x)
        if layer.feature_dim != -1:
            change = self._term_by_term(layer, x, batch_dim)
        elif self._fold_is_smaller(x):
            change = self._by_folding(layer, x, batch_dim)
        else:
            projected = layer.project(x.unsqueeze(-2) * spread(self.b, x, batch_dim))
            terms = projected * spread(self.a, frozen, batch_dim)
            change = terms.sum(-2, dtype=terms.dtype)  # or else autocast on a GPU would make it float32
        output = frozen + change
        if self.active is None:
            return output
        return torch.where(spread(self.active[:, None].float(), frozen, batch_dim) > 0, output, frozen)

    def _has_a_faster_way(self, layer: Projection, x: Tensor, batch_dim: int) -> bool:
        """Whether each row gets a weight of its own in place of the frozen one: see :mod:`cramer_peft.row_weights`."""
        rows, terms = max(self.a.shape[0], self.b.shape[0]), self.a.shape[1]
        return (
            is_product(layer)
            and layer.feature_dim == -1
            and (rows == 1 or batch_dim in (0, -x.dim()))
            and row_weights.worth_making(x.numel() // max(x.shape[-1] * rows, 1), terms)
            and row_weights.usable(x, layer.weight_matrix, layer.base_bias)
        )

    def _term_by_term(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        where = (batch_dim, layer.feature_dim)
        terms = [
            layer.project(x * spread(self.b[:, k], x, *where)) * spread(self.a[:, k], x, *where)
            for k in range(self.a.shape[1])
        ]
        return torch.stack(terms).sum(0, dtype=terms[0].dtype)

    def _fold_is_smaller(self, x: Tensor) -> bool:
        """Whether each row's change of the weight takes less room than the terms at each position.

        One matmul by the folded change replaces one for each term. Only shapes decide, never requests, so
        a row's bits do not depend on its neighbours.
        """
        _, terms, out_features = self.a.shape
        in_features = self.b.shape[-1]
        positions = x.numel() // max(x.shape[-1] * self.a.shape[0], 1)
        return 2 * in_features * out_features <= positions * terms * (in_features + out_features)

    def _by_folding(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
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


@dataclass(frozen=True)
class ProductGate(LayerGate):
    """The entrywise product of several masks; the first is the innermost."""

    gates: tuple[LayerGate, ...]

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        *inner, last = self.gates
        projection = layer
        for gate in inner:
            projection = _Masked(projection, gate, batch_dim)
        return last.apply(projection, x, batch_dim)

    def weight_mask(self) -> Tensor:
        return functools.reduce(torch.mul, (gate.weight_mask() for gate in self.gates))

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        for gate in self.gates:
            weight, bias = gate.fold(weight, bias, row if gate.rows > 1 else 0)
        return weight, bias


@dataclass(frozen=True)
class OwnedGate(LayerGate):
    """Each row masked by one of several gates: ``owner`` (rows,) says by which, -1 by none."""

    owner: Tensor
    gates: tuple[LayerGate, ...]

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        output = layer.base_forward(x)
        for index, gate in enumerate(self.gates):
            owned = spread((self.owner == index)[:, None].float(), output, batch_dim, layer.feature_dim) > 0
            output = torch.where(owned, gate.apply(layer, x, batch_dim), output)
        return output

    def weight_mask(self) -> Tensor:
        masks = [gate.weight_mask() for gate in self.gates]
        mask = torch.ones_like(masks[0])
        for index, other in enumerate(masks):
            mask = torch.where((self.owner == index)[:, None, None], other, mask)
        return mask

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        owner = int(self.owner[row])
        return (weight * 1, bias) if owner < 0 else self.gates[owner].fold(weight, bias, row)


PartGate = Union[LayerGate, FeatureGate]


class Gate(ABC):
    """One form of mask: what the generator makes for a layer, and what becomes of it."""

    name: ClassVar[str]
    has_strength: ClassVar[bool] = True
    draws_noise: ClassVar[bool] = False  # in training mode

    @abstractmethod
    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        """Names and shapes (without the rows) of the generator outputs that one layer needs."""

    @abstractmethod
    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        """Initialise the generator's last layer; with ``identity`` so that every mask starts at 1."""

    @abstractmethod
    def build(
        self,
        tensors: Mapping[str, LayerTensors],
        scale: Tensor | None,
        active: Tensor | None,
        training: bool,
    ) -> dict[str, PartGate]:
        """Gates of every layer.

        Args:
            tensors: Per layer name, the tensors named by :meth:`parts`, each with rows first.
            scale: Strength per row, (rows,); 0 for rows without a request. None: 1 everywhere.
            active: Rows that have a request, (rows,) bool. None: all have.
            training: Whether to draw noise, where the form has any.
        """

    def layer_size(self, spec: Spec) -> int:
        """Number of generator outputs for one layer."""
        return sum(math.prod(shape) for shape in self.parts(spec).values())

    def split(self, flat: Tensor, specs: Mapping[str, Spec]) -> dict[str, LayerTensors]:
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

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        return _logit_parts(spec)

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        _init_zero_or_random(head, identity)

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, PartGate]:
        def gate(logits: Tensor) -> Tensor:
            value = self._value(logits)
            if scale is None:
                return value
            # At strength 1 the value itself, which 1 + (value - 1) rounds: a row's bits must not depend on
            # whether another row has a strength.
            value = torch.where(scale[:, None] == 1, value, 1 + self._deviation(logits, scale[:, None]))
            return value if active is None else torch.where(active[:, None], value, 1.0)  # not even a NaN reaches them

        made: dict[str, PartGate] = {}
        for name, parts in tensors.items():
            values = {part: row_weights.made_once(gate(value)) for part, value in parts.items()}
            made[name] = _row_column(values, self.gate_bias)
        return made

    def _value(self, logits: Tensor) -> Tensor:
        return 2 * torch.sigmoid(logits)

    def _deviation(self, logits: Tensor, scale: Tensor) -> Tensor:
        """What a strength, (rows, 1), makes of the deviation from 1."""
        return scale * (self._value(logits) - 1)


class SignedGate(ScaleGate):
    """Row and column gates 1 + z without bounds: as cheap as ``scale``, and a gate may turn a unit's sign.

    A strength above 1 scales what is amplified alone; what is damped stays as at strength 1.
    """

    name = "signed"

    def _value(self, logits: Tensor) -> Tensor:
        return 1 + logits

    def _deviation(self, logits: Tensor, scale: Tensor) -> Tensor:
        # Not (1 + z) - 1, which rounds. Beyond 1 a strength only opens: what strength 1 closes, 2 would turn over.
        return torch.where(logits < 0, scale.clamp(max=1), scale) * logits


class LowRankMaskGate(Gate):
    """M = 1 + sum_k a_k b_k^T with unbounded factors: can amplify, suppress and turn a sign round."""

    name = "low_rank"

    def __init__(self, rank: int = 4) -> None:
        self.rank = rank

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        if isinstance(spec, FeatureSpec):
            return {"a": (spec.features,)}  # a diagonal needs no second factor
        return {"a": (self.rank, spec.out_features), "b": (self.rank, spec.in_features)}

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        """a starts at 0 (the identity); b at distinct random signs.

        Both at zero would have no gradient, and equal b would keep all terms equal for ever.
        """
        _init_zero_or_random(head, identity)
        with torch.no_grad():
            start = 0
            for spec in specs.values():
                if isinstance(spec, FeatureSpec):
                    start += spec.features
                    continue
                start += self.rank * spec.out_features  # past a
                signs = head.bias[start : start + self.rank * spec.in_features]
                signs.bernoulli_(0.5).mul_(2).sub_(1)
                start += self.rank * spec.in_features

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, PartGate]:
        gates: dict[str, PartGate] = {}
        for name, parts in tensors.items():
            a = parts["a"]
            if scale is not None:
                a = a * scale.to(a.dtype).reshape(-1, *[1] * (a.dim() - 1))
            if "b" in parts:
                gates[name] = LowRankGate(a, parts["b"], active)
            else:
                values = 1 + a
                gates[name] = FeatureGate(values if active is None else torch.where(active[:, None], values, 1.0))
        return gates


class TopKGate(Gate):
    """The paper's binary gates: the top k of all row and column logits, over all layers together.

    k = ceil((1 - drop_ratio) d) of the d gates are 1 (CRAMER, ICML 2026, section "Mask"). In training,
    Gumbel(0) noise is added to the logits before the top k is taken, and the gradient is that of
    softmax(z / temperature) (straight-through).
    """

    name = "topk"
    has_strength = False
    draws_noise = True

    def __init__(self, drop_ratio: float = 0.1, temperature: float = 0.7, gate_bias: bool = False) -> None:
        self.drop_ratio = drop_ratio
        self.temperature = temperature
        self.gate_bias = gate_bias

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        return _logit_parts(spec)

    def init_head(self, head: nn.Linear, specs: Mapping[str, Spec], identity: bool) -> None:
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def kept(self, total: int) -> int:
        """How many of ``total`` gates stay open."""
        return math.ceil((1 - self.drop_ratio) * total - 1e-9)  # 1e-9: 0.95 * 20 must not round up to 20

    def build(
        self, tensors: Mapping[str, LayerTensors], scale: Tensor | None, active: Tensor | None, training: bool
    ) -> dict[str, PartGate]:
        shapes = [(name, part, value.shape[-1]) for name, parts in tensors.items() for part, value in parts.items()]
        logits = torch.cat([value for parts in tensors.values() for value in parts.values()], dim=-1)
        gates = self._binary(logits, training)
        if active is not None:
            gates = torch.where(active[:, None], gates, torch.ones_like(gates))
        values: dict[str, LayerTensors] = {name: {} for name in tensors}
        for (name, part, _), value in zip(shapes, gates.split([n for *_, n in shapes], dim=-1), strict=True):
            values[name][part] = row_weights.made_once(value)
        return {name: _row_column(parts, self.gate_bias) for name, parts in values.items()}

    def _binary(self, logits: Tensor, training: bool) -> Tensor:
        noisy = logits
        if training:
            exponential = torch.empty_like(logits).exponential_()
            noisy = logits - exponential.log()  # -log of an Exponential(1) draw is a Gumbel(0) draw
        keep = noisy.detach().topk(self.kept(logits.shape[-1]), dim=-1).indices
        hard = torch.zeros_like(logits).scatter(-1, keep, 1.0)
        soft = torch.softmax(noisy / self.temperature, dim=-1)
        return hard + (soft - soft.detach())  # the bracket is exactly 0, so the gates stay binary


def _logit_parts(spec: Spec) -> dict[str, tuple[int, ...]]:
    if isinstance(spec, FeatureSpec):
        return {"row_logits": (spec.features,)}
    return {"row_logits": (spec.out_features,), "column_logits": (spec.in_features,)}


def _row_column(values: LayerTensors, gate_bias: bool) -> PartGate:
    if "column_logits" not in values:
        return FeatureGate(values["row_logits"])
    return RowColumnGate(values["row_logits"], values["column_logits"], gate_bias)


def compose(gates: list[PartGate]) -> PartGate:
    """One gate for a part that several adapters mask.

    Masks multiply entrywise, and deviations of ``low_rank`` add up within one mask: the product of the
    ``scale`` and ``topk`` masks with 1 + the sum of all low-rank terms.
    """
    if len(gates) == 1:
        return gates[0]
    rows = max(gate.rows for gate in gates)
    shared = all(gate.shared for gate in gates)
    features = [gate for gate in gates if isinstance(gate, FeatureGate)]
    if features:
        return FeatureGate(functools.reduce(torch.mul, (gate.values for gate in features)), shared=shared)
    layers = [gate for gate in gates if isinstance(gate, LayerGate)]
    low_rank = [gate for gate in layers if isinstance(gate, LowRankGate)]
    others = [gate for gate in layers if not isinstance(gate, LowRankGate)]
    # Those that gate the bias go outside: the inner ones take the bias off as the frozen layer has it.
    others.sort(key=lambda gate: isinstance(gate, RowColumnGate) and gate.gate_bias)
    if len(low_rank) > 1:
        low_rank = [_concatenated(low_rank, rows)]
    parts = (*low_rank, *others)
    return parts[0] if len(parts) == 1 else ProductGate(parts, shared=shared)


def _concatenated(gates: list[LowRankGate], rows: int) -> LowRankGate:
    def every_row(value: Tensor) -> Tensor:
        return value.expand(rows, *value.shape[1:])

    masked = [gate.a if gate.active is None else torch.where(gate.active[:, None, None], gate.a, 0.0) for gate in gates]
    active = [
        torch.ones(rows, dtype=torch.bool, device=gate.a.device) if gate.active is None else every_row(gate.active)
        for gate in gates
    ]
    return LowRankGate(
        torch.cat([every_row(a) for a in masked], dim=1),
        torch.cat([every_row(gate.b) for gate in gates], dim=1),
        None if any(gate.active is None for gate in gates) else functools.reduce(torch.logical_or, active),
        shared=all(gate.shared for gate in gates),
    )


def by_owner(gates: dict[int, PartGate], owner: Tensor) -> PartGate:
    """One gate for a part whose rows belong to different adapters.

    Args:
        gates: Adapter's number → its gates, with a row for each of the batch.
        owner: Number of each row's adapter, (rows,); rows of none of ``gates`` are left frozen.

    Returns:
        Gates of the same form where all have the same, so that a row's bits are those it has alone.
    """
    kinds = {(type(gate), tuple(value.shape[1:] for value in gate.tensors())) for gate in gates.values()}
    bias_rules = {gate.gate_bias for gate in gates.values() if isinstance(gate, RowColumnGate)}
    if len(kinds) > 1 or len(bias_rules) > 1:
        numbers = {number: index for index, number in enumerate(gates)}
        local = torch.full_like(owner, -1)
        for number, index in numbers.items():
            local = torch.where(owner == number, index, local)
        return OwnedGate(local, tuple(gates.values()))  # type: ignore[arg-type]
    (number, result), *others = gates.items()
    if isinstance(result, LowRankGate):
        result = result.with_values(active=_owned(owner, gates))
        others = [(n, g.with_values(active=result.active)) for n, g in others if isinstance(g, LowRankGate)]
    for number, gate in others:
        rows = iter(gate.tensors())
        result = result._map(lambda value: _pick(owner == number, next(rows), value))  # noqa: B023 (used at once)
    return result


def _owned(owner: Tensor, gates: dict[int, PartGate]) -> Tensor:
    owned = torch.zeros_like(owner, dtype=torch.bool)
    for number, gate in gates.items():
        active = gate.active if isinstance(gate, LowRankGate) else None
        owned = owned | ((owner == number) if active is None else (owner == number) & active)
    return owned


def _pick(where: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(where.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def _init_zero_or_random(head: nn.Linear, identity: bool) -> None:
    if identity:
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=0.5 / math.sqrt(head.in_features))
    if identity:
        nn.init.zeros_(head.bias)
    else:
        nn.init.normal_(head.bias, std=0.3)


GATES: dict[str, type[Gate]] = {gate.name: gate for gate in (LowRankMaskGate, ScaleGate, SignedGate, TopKGate)}


def make_gate(config: Any) -> Gate:
    """The gate that a :class:`~cramer_peft.RequestMaskConfig` describes."""
    if config.gate == LowRankMaskGate.name:
        return LowRankMaskGate(rank=config.rank)
    if config.gate == ScaleGate.name:
        return ScaleGate(gate_bias=config.gate_bias)
    if config.gate == SignedGate.name:
        return SignedGate(gate_bias=config.gate_bias)
    return TopKGate(drop_ratio=config.drop_ratio, temperature=config.temperature_start, gate_bias=config.gate_bias)
