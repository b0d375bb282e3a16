"""Masks for the rows of a batch, and how one acts on a frozen layer.

A mask M multiplies a frozen weight W of shape (out, in) entry by entry. It is never written out:
``diag(r) W diag(c) x = r * W(c * x)`` turns row and column gates into products on activations.
A gate is the number that multiplies one row or column of a weight, or one feature.

A row without a request must equal the frozen model's bit for bit, and a row's bits must not depend on its neighbours.
Hence the care below about the order of operations, and about the strides by which kernels are chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, Union

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from cramer_peft.masks.tracing import is_plain


@dataclass(frozen=True)
class LayerSpec:
    """The widths of one masked weight."""

    out_features: int
    in_features: int


@dataclass(frozen=True)
class FeatureSpec:
    """The number of features that a mask multiplies beside any weight: a diagonal mask."""

    features: int


@dataclass(frozen=True)
class RowSpec:
    """An entry whose row values are made from descriptions of its rows; ``rows`` is None until these are set."""

    rows: int | None = None


Spec = Union[LayerSpec, FeatureSpec, RowSpec]


class Projection(Protocol):
    """The frozen layer that a mask is applied to."""

    @property
    def feature_dim(self) -> int:
        """Dimension that holds the features in input and output, counted from the end."""

    @property
    def is_product(self) -> bool:
        """True if ``base_forward`` is the product with ``weight_matrix`` plus the bias, and no more.

        A mask may then compute the same result in another way.
        """

    def base_forward(self, x: Tensor) -> Tensor:
        """Run the frozen layer, bias included: (…, in) → (…, out)."""

    def project(self, x: Tensor) -> Tensor:
        """Apply the frozen weight alone, without the bias: (…, in) → (…, out)."""

    @property
    def weight_matrix(self) -> Tensor:
        """The frozen weight, (out, in)."""

    @property
    def base_bias(self) -> Tensor | None:
        """The frozen bias, (out,), or None."""


@dataclass(frozen=True)
class WeightProjection:
    """A projection by a weight (out, in) and a bias (out,), for layers that hold several weights."""

    weight_matrix: Tensor
    base_bias: Tensor | None = None
    feature_dim: int = -1
    is_product: bool = True

    def base_forward(self, x: Tensor) -> Tensor:
        """Apply the weight and the bias to ``x``."""
        return functional.linear(x, self.weight_matrix, self.base_bias)

    def project(self, x: Tensor) -> Tensor:
        """Apply the weight alone to ``x``."""
        return functional.linear(x, self.weight_matrix)


def spread(gates: Tensor, x: Tensor, batch_dim: int, feature_dim: int = -1) -> Tensor:
    """View gates of shape (rows, …, features) so that they broadcast over ``x``.

    The rows go to ``batch_dim`` of ``x`` and the features to ``feature_dim``; a dimension between them
    (the terms of ``low_rank``, with the features last) stays next to the features.
    """
    inner = gates.shape[1:]
    shape = [1] * (x.dim() - 1 + len(inner))
    if gates.shape[0] != 1:
        shape[batch_dim % x.dim()] = gates.shape[0]
    if len(inner) == 1:
        shape[feature_dim] = inner[0]
    else:
        shape[-len(inner) :] = inner
    return gates.reshape(shape).to(x.dtype)


def with_strides_of(value: Tensor, x: Tensor) -> Tensor:
    """Return ``value`` (shaped as ``x``) with the strides of ``x``.

    Kernels are chosen by strides and round differently. A row without a request keeps its bits only if the frozen layer
    sees the strides that it would see without a mask; and a product does not keep those of its input if they leave gaps
    or a dimension is 1 long. In a compiled graph, and under transforms such as vmap, ``value`` is returned as it is.
    """
    if torch.compiler.is_compiling() or x.is_nested or value.shape != x.shape or value.stride() == x.stride():
        return value
    if 0 in x.stride() or not is_plain(x):  # a stride of 0 has room for one element only
        return value
    return torch.empty_strided(x.shape, x.stride(), dtype=value.dtype, device=x.device).copy_(value)


@dataclass(frozen=True)
class BatchMask:
    """The mask of one part of a layer, for the rows of a batch; ``shared``: its one row serves a batch of any size."""

    shared: bool = field(default=False, kw_only=True)

    @property
    def rows(self) -> int:
        """Number of requests."""
        return max(value.shape[0] for value in self.tensors())

    def tensors(self) -> list[Tensor]:
        """List every tensor that holds one row per request, or one row for all."""
        found: list[Tensor] = []
        self.map_tensors(lambda value: found.append(value) or value)  # type: ignore[func-returns-value]
        return found

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the mask with ``function`` applied to each tensor that has a row for each request."""
        rows = self.rows
        return self.map_tensors(lambda value: function(value) if value.shape[0] == rows else value)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the mask with ``function`` applied to each of its tensors."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, tuple):
                changed[item.name] = tuple(mask.map_tensors(function) for mask in value)
        return self.with_values(**changed)

    def with_values(self, **changed: Any) -> Self:
        """Return a copy with other values, as ``dataclasses.replace``, which torch.compile cannot trace before 2.7."""
        return type(self)(**{**{item.name: getattr(self, item.name) for item in fields(self)}, **changed})


@dataclass(frozen=True)
class LayerMask(BatchMask, ABC):
    """The mask of one weight."""

    @abstractmethod
    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        """Run ``layer`` on ``x`` with its weight masked, a mask for each row along ``batch_dim``."""

    @abstractmethod
    def weight_mask(self) -> Tensor:
        """Return the masks written out, (rows, out, in)."""

    @abstractmethod
    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        """Return a new (out, in) weight and bias that do what :meth:`apply` does for one row."""


@dataclass(frozen=True)
class FeatureMask(BatchMask):
    """Gates on features, (rows, features): a product with the activations and nothing else."""

    values: Tensor

    def multiply(self, x: Tensor, batch_dim: int, feature_dim: int = -1) -> Tensor:
        """Multiply ``x`` by the gates; a gate of exactly 1 leaves its bits."""
        return with_strides_of(x * spread(self.values, x, batch_dim, feature_dim), x)

    def row(self, row: int) -> Tensor:
        """Return the gates of one row, (features,)."""
        return self.values[row if self.values.shape[0] > 1 else 0]


@dataclass(frozen=True)
class RowColumnMask(LayerMask):
    """M = r c^T, with row gates r of shape (rows, out) and column gates c of shape (rows, in).

    Gates of exactly 1 leave the output bit for bit as it is, because multiplying by 1.0 is exact.
    """

    row: Tensor
    column: Tensor
    gate_bias: bool

    @property
    def rows(self) -> int:
        return max(self.row.shape[0], self.column.shape[0])

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        output = layer.base_forward(with_strides_of(x * spread(self.column, x, batch_dim, layer.feature_dim), x))
        row = spread(self.row, output, batch_dim, layer.feature_dim)
        # In place, since a large tensor costs more to allocate than to fill; but only if nothing else holds the output.
        in_place = layer.is_product and not torch.is_grad_enabled()
        output = output.mul_(row) if in_place else row * output
        if self.gate_bias or layer.base_bias is None:
            return output
        # Adds exactly 0 for a row gate of 1, whereas row * (output - bias) + bias would round.
        return output + (1 - row) * spread(layer.base_bias[None], output, batch_dim, layer.feature_dim)

    def weight_mask(self) -> Tensor:
        return self.row.unsqueeze(-1) * self.column.unsqueeze(-2)

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        folded = weight * self.weight_mask()[row].to(weight.dtype)
        if bias is None or not self.gate_bias:
            return folded, bias
        return folded, bias * self.row[row].to(bias.dtype)


Mask = Union[LayerMask, FeatureMask]
Masks = Mapping[str, Mask]  # by entry: the name of a module, or of a part of one that has several
