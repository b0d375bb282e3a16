"""Arithmetic of mask states, in the spaces where a sum composes, a minus negates and a factor strengthens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cramer_peft.errors import BaseModelMismatchError, RequestError, UnsupportedError
from cramer_peft.gates import LayerTensors, LowRankMaskGate, ScaleGate, SignedGate

if TYPE_CHECKING:
    from cramer_peft.state import MaskState


def scaled(state: MaskState, factor: float) -> MaskState:
    """A state of ``factor`` times the logits (``scale``), z (``signed``) or the factors ``a`` (``low_rank``).

    Raises:
        UnsupportedError: If the gates are binary.
        RequestError: If ``factor`` is NaN or infinite.
    """
    _check_gate(state)
    if not math.isfinite(factor):
        raise RequestError(f"a mask state can be multiplied by a finite number, found {factor!r}.")
    described: Callable[[str], str] = _negated_text if factor == -1 else lambda text: f"{factor:g} * ({text})"
    return replace(
        state,
        tensors={
            # Not b too: the product of two negated factors is the product that was there.
            name: {part: value if part == "b" else value * factor for part, value in parts.items()}
            for name, parts in state.tensors.items()
        },
        texts=tuple(None if text is None else described(text) for text in state.texts),
    )


def added(one: MaskState, other: MaskState) -> MaskState:
    """A state that composes two: logits (``scale``) or z (``signed``) add up, terms stand side by side (``low_rank``).

    Raises:
        UnsupportedError: If the gates are binary.
        RequestError: If they are of different adapters, gates or layers, on different devices, of different
            numbers of rows (other than one), or, for ``scale`` and ``signed``, of different strengths.
        BaseModelMismatchError: If they were made for different base models.
    """
    _check_gate(one)
    _check_pair(one, other)
    rows = max(len(one), len(other))
    asks = [(state.active & (state.strength != 0)).expand(rows) for state in (one, other)]
    if one.gate in (ScaleGate.name, SignedGate.name):
        strength = _common_strength(one, other, asks, rows)
        tensors = [_for_rows(state.tensors, rows, asked, None) for state, asked in zip((one, other), asks, strict=True)]
    else:
        strength = torch.ones(rows, dtype=one.strength.dtype, device=one.strength.device)
        tensors = [
            _for_rows(state.tensors, rows, asked, state.strength)
            for state, asked in zip((one, other), asks, strict=True)
        ]
    return replace(
        one,
        tensors={name: _joined(parts, tensors[1][name]) for name, parts in tensors[0].items()},
        active=asks[0] | asks[1],
        strength=strength,
        texts=_joined_texts(one, other, asks),
        base_fingerprint=one.base_fingerprint if one.base_fingerprint is not None else other.base_fingerprint,
    )


def _check_gate(state: MaskState) -> None:
    if state.gate not in (ScaleGate.name, SignedGate.name, LowRankMaskGate.name):
        raise UnsupportedError(
            f"mask states of gate={state.gate!r} cannot be negated, added or multiplied: its gates are 0 or 1, have no "
            "strength, and their number is fixed. Use gate='low_rank', 'scale' or 'signed'."
        )


def _check_pair(one: MaskState, other: MaskState) -> None:
    for name in ("gate", "adapter", "encoder"):
        mine, its = getattr(one, name), getattr(other, name)
        if mine != its:
            raise RequestError(
                f"mask states of different adapters cannot be added: they have {name}={mine!r} and {its!r}. Make "
                "several adapters active and give each its own state, request={name: state, …}."
            )
    known = one.base_fingerprint, other.base_fingerprint
    if None not in known and known[0] != known[1]:
        raise BaseModelMismatchError(
            f"the mask states were made for different base models: {known[0]} and {known[1]}. "
            "dataclasses.replace(state, base_fingerprint=None) overrides this."
        )
    layouts = [_layout(state) for state in (one, other)]
    if layouts[0] != layouts[1]:
        key = sorted(key for key in layouts[0].keys() | layouts[1].keys() if layouts[0].get(key) != layouts[1].get(key))
        raise RequestError(
            f"the mask states are of different layers: for example {key[0]!r} is {layouts[0].get(key[0])} in one and "
            f"{layouts[1].get(key[0])} in the other."
        )
    if len(one) != len(other) and 1 not in (len(one), len(other)):
        raise RequestError(
            f"mask states of {len(one)} and {len(other)} rows cannot be added: one row, or equally many."
        )
    if one.active.device != other.active.device:
        raise RequestError(
            f"the mask states are on {one.active.device} and {other.active.device}: move one by state.to(device)."
        )


def _layout(state: MaskState) -> dict[str, tuple[int, ...]]:
    """Per tensor, its shape without the rows and the number of low-rank terms."""
    return {
        f"{name}.{part}": tuple(value.shape[2:] if value.dim() == 3 else value.shape[1:])
        for name, parts in state.tensors.items()
        for part, value in parts.items()
    }


def _common_strength(one: MaskState, other: MaskState, asks: list[Tensor], rows: int) -> Tensor:
    strengths = one.strength.expand(rows), other.strength.expand(rows)
    differ = asks[0] & asks[1] & (strengths[0] != strengths[1])
    if bool(differ.any()):
        row = int(differ.nonzero()[0])
        raise RequestError(
            f"gate={one.gate!r} adds logits, which have no strength of their own: row {row} has strength "
            f"{float(strengths[0][row]):g} in one state and {float(strengths[1][row]):g} in the other. Make both with "
            "equal strengths, or multiply the states instead."
        )
    return torch.where(asks[0], strengths[0], strengths[1])


def _for_rows(
    tensors: dict[str, LayerTensors], rows: int, asked: Tensor, strength: Tensor | None
) -> dict[str, LayerTensors]:
    """The tensors with ``rows`` rows, strength folded in, and nothing where nothing was asked."""

    def ready(part: str, value: Tensor) -> Tensor:
        by_row = (-1, *[1] * (value.dim() - 1))
        if strength is not None and part == "a":
            value = value * strength.to(value.dtype).reshape(by_row)
        value = value.expand(rows, *value.shape[1:])
        return value if part == "b" else torch.where(asked.reshape(by_row), value, torch.zeros_like(value))

    return {name: {part: ready(part, value) for part, value in parts.items()} for name, parts in tensors.items()}


def _joined(one: LayerTensors, other: LayerTensors) -> LayerTensors:
    if "b" in one:
        return {part: torch.cat([one[part], other[part]], dim=1) for part in ("a", "b")}
    return {part: value + other[part] for part, value in one.items()}


def _joined_texts(one: MaskState, other: MaskState, asks: list[Tensor]) -> tuple[str | None, ...]:
    if not one.texts and not other.texts:
        return ()
    columns = [_texts_by_row(state, asked) for state, asked in zip((one, other), asks, strict=True)]
    return tuple(_joined_text(a, b) for a, b in zip(*columns, strict=True))


def _texts_by_row(state: MaskState, asked: Tensor) -> list[str | None]:
    rows = asked.tolist()
    texts = list(state.texts) or [None] * len(state)
    if len(texts) != len(rows):
        texts = texts * len(rows)
    # A ready vector has no text, and still is part of the sum.
    return [
        (text if text is not None else "(a vector)") if asks else None for text, asks in zip(texts, rows, strict=True)
    ]


def _joined_text(one: str | None, other: str | None) -> str | None:
    return one if other is None else other if one is None else f"{one} + {other}"


def _negated_text(text: str) -> str:
    return text[2:-1] if _is_negated(text) else f"-({text})"


def _is_negated(text: str) -> bool:
    """Whether all of ``text`` is in the one pair of brackets that a minus is before."""
    if not (text.startswith("-(") and text.endswith(")")):
        return False
    depth = 0
    for place, letter in enumerate(text[1:-1], 1):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and place < len(text) - 1:
            return False
    return depth == 1
