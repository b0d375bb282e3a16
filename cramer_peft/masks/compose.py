"""Composes the masks of several adapters on one part of a layer: all on every row, or each row by its own adapter."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft.errors import ConfigError
from cramer_peft.masks.low_rank import LowRankMask
from cramer_peft.masks.mask import FeatureMask, LayerMask, Mask, Projection, RowColumnMask, spread
from cramer_peft.masks.row_values import RowValueMask


@dataclass(frozen=True)
class _MaskedProjection:
    """A projection that is masked already, for another mask around it."""

    projection: Projection
    mask: LayerMask
    batch_dim: int
    is_product: bool = False

    @property
    def feature_dim(self) -> int:
        return self.projection.feature_dim

    @property
    def base_bias(self) -> Tensor | None:
        return self.projection.base_bias

    def base_forward(self, x: Tensor) -> Tensor:
        return self.mask.apply(self.projection, x, self.batch_dim)

    @property
    def weight_matrix(self) -> Tensor:
        raise NotImplementedError  # only low_rank reads it, and low_rank is always the innermost

    def project(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class ProductMask(LayerMask):
    """The entrywise product of several masks; the first is the innermost."""

    masks: tuple[LayerMask, ...]

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        *inner, last = self.masks
        projection = layer
        for mask in inner:
            projection = _MaskedProjection(projection, mask, batch_dim)
        return last.apply(projection, x, batch_dim)

    def weight_mask(self) -> Tensor:
        return functools.reduce(torch.mul, (mask.weight_mask() for mask in self.masks))

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        for mask in self.masks:
            weight, bias = mask.fold(weight, bias, row if mask.rows > 1 else 0)
        return weight, bias


@dataclass(frozen=True)
class RowwiseMask(LayerMask):
    """Each row masked by one of several masks of different forms."""

    chosen: Tensor  # index of each row's mask, (rows,); -1 for none
    masks: tuple[LayerMask, ...]  # each with a row for each of the batch

    def apply(self, layer: Projection, x: Tensor, batch_dim: int) -> Tensor:
        output = layer.base_forward(x)
        for index, mask in enumerate(self.masks):
            own = spread((self.chosen == index)[:, None].float(), output, batch_dim, layer.feature_dim) > 0
            output = torch.where(own, mask.apply(layer, x, batch_dim), output)
        return output

    def weight_mask(self) -> Tensor:
        written = [mask.weight_mask() for mask in self.masks]
        result = torch.ones_like(written[0])
        for index, other in enumerate(written):
            result = torch.where((self.chosen == index)[:, None, None], other, result)
        return result

    def fold(self, weight: Tensor, bias: Tensor | None, row: int) -> tuple[Tensor, Tensor | None]:
        chosen = int(self.chosen[row])
        return (weight * 1, bias) if chosen < 0 else self.masks[chosen].fold(weight, bias, row)


def compose(masks: list[Mask]) -> Mask:
    """Return one mask for a part that several adapters mask.

    Masks multiply entrywise, and deviations of ``low_rank`` add up within one mask, 1 + the sum of all terms.
    """
    if len(masks) == 1:
        return masks[0]
    rows = max(mask.rows for mask in masks)
    shared = all(mask.shared for mask in masks)
    features = [mask for mask in masks if isinstance(mask, FeatureMask)]
    if features:
        _check_one_kind(masks)
        return FeatureMask(functools.reduce(torch.mul, (mask.values for mask in features)), shared=shared)
    layers = [mask for mask in masks if isinstance(mask, LayerMask)]
    low_rank = [mask for mask in layers if isinstance(mask, LowRankMask)]
    others = [mask for mask in layers if not isinstance(mask, LowRankMask)]
    # Masks that gate the bias go outside, because those that do not must find the frozen layer's own bias. Row values
    # are added last, so that no gate multiplies them.
    others.sort(key=lambda mask: 2 * isinstance(mask, RowValueMask) + getattr(mask, "gate_bias", False))
    if len(low_rank) > 1:
        low_rank = [_concatenate(low_rank, rows)]
    parts = (*low_rank, *others)
    return parts[0] if len(parts) == 1 else ProductMask(parts, shared=shared)


def compose_rowwise(masks: dict[int, Mask], adapters: Tensor) -> Mask:
    """Return one mask for a part whose rows belong to different adapters (``masks`` by number, ``adapters`` by row).

    It has the masks' own form if all have the same, so that a row's bits are those it has alone.
    """
    kinds = {
        (type(mask), getattr(mask, "keys", None), tuple(value.shape[1:] for value in mask.tensors()))
        for mask in masks.values()
    }
    bias_rules = {mask.gate_bias for mask in masks.values() if isinstance(mask, RowColumnMask)}
    if len(kinds) > 1 or len(bias_rules) > 1:
        _check_one_kind(list(masks.values()))
        chosen = torch.full_like(adapters, -1)
        for index, number in enumerate(masks):
            chosen = torch.where(adapters == number, index, chosen)
        return RowwiseMask(chosen, tuple(masks.values()))  # type: ignore[arg-type]
    (number, result), *others = masks.items()
    if isinstance(result, LowRankMask):
        result = result.with_values(active=_active_rows(adapters, masks))
        others = [(n, mask.with_values(active=result.active)) for n, mask in others if isinstance(mask, LowRankMask)]
    for number, mask in others:
        values = iter(mask.tensors())
        result = result.map_tensors(lambda old: _pick(adapters == number, next(values), old))  # noqa: B023 (used at once)
    return result


def _check_one_kind(masks: list[Mask]) -> None:
    if len({isinstance(mask, FeatureMask) for mask in masks}) > 1:
        raise ConfigError(
            "two adapters mask the same output, one by gates and one by row values: use one of them at a time, by "
            "set_adapter(name)."
        )


def _concatenate(masks: list[LowRankMask], rows: int) -> LowRankMask:
    """Put the terms of several masks side by side."""

    def every_row(value: Tensor) -> Tensor:
        return value.expand(rows, *value.shape[1:])

    factors = [
        mask.a if mask.active is None else torch.where(mask.active[:, None, None], mask.a, 0.0) for mask in masks
    ]
    active = [
        torch.ones(rows, dtype=torch.bool, device=mask.a.device) if mask.active is None else every_row(mask.active)
        for mask in masks
    ]
    return LowRankMask(
        torch.cat([every_row(a) for a in factors], dim=1),
        torch.cat([every_row(mask.b) for mask in masks], dim=1),
        None if any(mask.active is None for mask in masks) else functools.reduce(torch.logical_or, active),
        shared=all(mask.shared for mask in masks),
    )


def _active_rows(adapters: Tensor, masks: dict[int, Mask]) -> Tensor:
    """Return the rows, (rows,) bool, that have an adapter and a request."""
    found = torch.zeros_like(adapters, dtype=torch.bool)
    for number, mask in masks.items():
        active = mask.active if isinstance(mask, LowRankMask) else None
        found = found | ((adapters == number) if active is None else (adapters == number) & active)
    return found


def _pick(where: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(where.reshape(-1, *[1] * (new.dim() - 1)), new, old)
