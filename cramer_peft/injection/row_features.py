"""Row features: how they are checked, and the few numbers by which others are told from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cramer_peft.config import RequestMaskConfig
from cramer_peft.errors import BaseModelMismatchError, ConfigError, RequestError
from cramer_peft.layers.output import spelled
from cramer_peft.masks import RowKeys, RowSpec, Spec, compared_width
from cramer_peft.masks.config_values import SKETCH_LENGTH

_SUMS = SKETCH_LENGTH - 3
_TOLERANCE = 1e-4  # of the length of all features: other machines round otherwise, and one other row moves more
_BLOCK = 65_536  # rows at a time


def checked_features(name: str, features: Any, rows: int | None, width: int | None, compared: int) -> Tensor:
    """Return row features as float32, (rows, width).

    Args:
        name: The target, for messages.
        features: What the caller gave.
        rows: Number of the layer's output rows; None if it is not known.
        width: Number of features that the adapter was made for; None: any.
        compared: Number of features that requests are compared with.

    Raises:
        RequestError: If they are no finite (rows, width) tensor of floating-point numbers.
    """
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.is_floating_point():
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise RequestError(f"row features of {name!r}: found {found}, expected a (rows, features) tensor of floats.")
    shape, least = tuple(features.shape), max(compared, 1)
    if 0 in shape or rows not in (None, shape[0]) or width not in (None, shape[1]) or shape[1] < least:
        shown = "one or more" if rows is None else str(rows)
        wide = str(width) if width is not None else f"at least {least}"
        raise RequestError(
            f"row features of {name!r}: found shape {shape}, expected {shown} rows of {wide} features: one row for "
            "each output of the layer, in its order, and the columns that the adapter was made with."
        )
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise RequestError(f"row features of {name!r}: row {row} holds NaN or infinity, expected finite numbers.")
    return features.detach().to(torch.float32)


def sketch(features: Tensor) -> list[float]:
    """Return numbers that tell other row features: their shape, their length and sums with fixed weights.

    Unlike a digest they can be compared up to rounding, so features may be computed anew on another machine.
    """
    rows, width = features.shape
    waves = torch.arange(1, _SUMS + 1, dtype=torch.float64) * 1.618033988749895
    columns = torch.cos(0.7 + torch.arange(width, dtype=torch.float64)[:, None] * waves)
    sums, squares = torch.zeros(_SUMS, dtype=torch.float64), 0.0
    for start in range(0, rows, _BLOCK):
        block = features[start : start + _BLOCK].detach().double().cpu()
        weights = torch.cos(0.3 + torch.arange(start, start + len(block), dtype=torch.float64)[:, None] * waves)
        sums += (weights * (block @ columns)).sum(0)
        squares += float((block**2).sum())
    return [float(rows), float(width), squares**0.5, *sums.tolist()]


def check_same(name: str, found: Sequence[float], known: Sequence[float]) -> None:
    """Raise a BaseModelMismatchError if two sketches are not those of the same features, up to rounding."""
    near = len(found) == len(known) and list(found[:2]) == list(known[:2])
    if near and all(abs(a - b) <= _TOLERANCE * max(known[2], 1e-12) for a, b in zip(found, known, strict=True)):
        return
    raise BaseModelMismatchError(
        f"the row features of {name!r} are not those that the adapter was made with: found {found[0]:.0f} rows of "
        f"{found[1]:.0f} features of length {found[2]:.4g}, expected {known[0]:.0f} of {known[1]:.0f} of length "
        f"{known[2]:.4g}, or they are in another order. Give the same; for rows that were added, or another catalogue, "
        "pass check=False."
    )


class Describable(Protocol):
    """A generator, as far as the description of rows needs it."""

    row_entries: list[str]
    sides: dict[str, int]
    specs: dict[str, Spec]

    def describe_rows(self, entry: str, width: int) -> RowKeys:
        """Return the module that makes an entry's keys from ``width`` features."""


def describe_rows(
    adapter: str, config: RequestMaskConfig, generator: Describable, name: str, given: Tensor, check: bool
) -> None:
    """Describe the rows of a target of an adapter; see :meth:`RequestMaskModel.set_row_features`."""
    entry = _described_entry(adapter, generator.row_entries, name)
    assert isinstance(config.row_features, dict)  # filled in at injection
    spec, known = generator.specs[entry], (config.row_fingerprints or {}).get(entry)
    rows = spec.rows if isinstance(spec, RowSpec) and ":" not in entry else None
    features = checked_features(name, given, rows, config.row_features[entry], compared_width(generator.sides))
    found = sketch(features)
    if known is not None and check:
        check_same(name, found, known)
    keys = generator.describe_rows(entry, features.shape[1])
    keys.features = features.to(keys.gains)  # device and dtype
    generator.specs[entry] = RowSpec(len(features))
    config.fill_in(
        row_features={**config.row_features, entry: features.shape[1]},
        row_fingerprints={**(config.row_fingerprints or {}), entry: found},
    )


def _described_entry(adapter: str, entries: Sequence[str], name: str) -> str:
    """Return the entry that ``name`` names, as in ``row_features``: a module, or a method of one."""
    exact = [entry for entry in entries if name in (entry, spelled(entry))]
    found = exact or [entry for entry in entries if spelled(entry).endswith(f".{name}")]
    if len(found) != 1:
        raise ConfigError(
            f"adapter {adapter!r} describes the rows of {[spelled(entry) for entry in entries]}, found {name!r}: name "
            "one of them, as in row_features of the configuration."
        )
    return found[0]
