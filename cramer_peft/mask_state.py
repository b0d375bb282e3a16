"""Mask states: the generator's outputs for some requests, to keep, save, add up and use again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, RequestError, UnsupportedError
from cramer_peft.masks import FORMS, QUERY, LayerTensors, LowRankForm, MaskForm, ScaleForm, SignedForm, Spec
from cramer_peft.storage.files import parse_json, read_safetensors, write_safetensors

MAX_STATE_BYTES = 2 * 2**30

_NAME_LENGTH = 1000
_FORMAT = "cramer-peft mask state 1"
_ACTIVE, _STRENGTH = "__active__", "__strength__"


class Layout(Protocol):
    """A generator, as a mask state is compared with it."""

    form: MaskForm
    specs: dict[str, Spec]

    def parts(self, spec: Spec) -> dict[str, tuple[int, ...]]:
        """Return names and shapes (without the rows) of the tensors of an entry."""


@dataclass(frozen=True)
class MaskState:
    """The generator's outputs for some requests.

    States of one adapter can be added, subtracted, negated and multiplied by numbers: ``a + b`` composes, ``-a``
    reverses each deviation from the identity, ``2 * a`` strengthens it. For ``scale`` and ``signed`` the logits are
    added and multiplied. For ``low_rank`` a sum holds the terms of both, and only the factors ``a`` are multiplied.
    ``topk`` has no arithmetic. A state of one row is added to every row of the other; rows without a request add
    nothing.

    Attributes:
        tensors: Per masked module and part, a tensor with one row per request: ``row_logits`` and ``column_logits`` for
            the forms ``scale``, ``signed`` and ``topk``, the terms ``a`` (rows, rank, out) and ``b`` (rows, rank, in)
            for ``low_rank``; ``query`` for a layer whose rows are described, whatever their number.
        active: Rows that have a request, (rows,) bool; the others are the frozen model's.
        strength: Strength per row, (rows,) float32.
        gate: Name of the form of the masks.
        texts: The text of each row, None for a row without one.
        adapter: Name of the adapter that made it.
        encoder: Name of the encoder that made the vectors, or None for ready vectors.
        base_fingerprint: Fingerprint of the masked weights it was made for, or None if unknown.
    """

    tensors: dict[str, LayerTensors]
    active: Tensor
    strength: Tensor
    gate: str
    texts: tuple[str | None, ...] = field(default=())
    adapter: str = "default"
    encoder: str | None = None
    base_fingerprint: str | None = None

    def __len__(self) -> int:
        return int(self.active.shape[0])

    def __add__(self, other: MaskState) -> MaskState:
        return _added(self, other) if isinstance(other, MaskState) else NotImplemented

    def __radd__(self, other: object) -> MaskState:
        # sum() starts at 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: MaskState) -> MaskState:
        return _added(self, -other) if isinstance(other, MaskState) else NotImplemented

    def __neg__(self) -> MaskState:
        return _scaled(self, -1)

    def __mul__(self, factor: float) -> MaskState:
        return _scaled(self, float(factor)) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def to(self, *args: Any, **kwargs: Any) -> MaskState:
        """Return a copy with its tensors moved or cast, as ``torch.Tensor.to`` does."""
        tensors = {
            name: {part: value.to(*args, **kwargs) for part, value in parts.items()}
            for name, parts in self.tensors.items()
        }
        device = next(iter(next(iter(tensors.values())).values())).device
        return replace(self, tensors=tensors, active=self.active.to(device), strength=self.strength.to(device))

    def detach(self) -> MaskState:
        """Return a copy that is detached from the graph that made it."""
        tensors = {name: {p: value.detach() for p, value in parts.items()} for name, parts in self.tensors.items()}
        return replace(self, tensors=tensors)

    def check_fits(self, generator: Layout, base_fingerprint: str | None) -> None:
        """Check that the state is one of an adapter, given the adapter's generator and fingerprint.

        Raises:
            RequestError: If the state has another form or other layers.
            BaseModelMismatchError: If it was made for another base model.
        """
        if self.gate != generator.form.name:
            raise RequestError(f"the mask state has gate={self.gate!r}, the adapter {generator.form.name!r}.")
        expected = {
            f"{entry}.{part}": _any_rank(shape)
            for entry, spec in generator.specs.items()
            for part, shape in generator.parts(spec).items()
        }
        found = {
            f"{entry}.{part}": _any_rank(tuple(value.shape[1:]))
            for entry, parts in self.tensors.items()
            for part, value in parts.items()
        }
        if found != expected:
            differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            key = differing[0]
            raise RequestError(
                f"the mask state does not fit the adapter: {len(differing)} tensors differ, for example "
                f"{key!r} (the adapter has {expected.get(key)}, the state {found.get(key)})."
            )
        known = self.base_fingerprint, base_fingerprint
        if None not in known and known[0] != known[1]:
            raise BaseModelMismatchError(
                f"the mask state was made for another base model: it expects {known[0]}, the masked weights are "
                f"{known[1]}. dataclasses.replace(state, base_fingerprint=None) overrides this."
            )

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        flat = {f"{name}.{part}": value for name, parts in self.tensors.items() for part, value in parts.items()}
        metadata = {
            "format": _FORMAT,
            "gate": self.gate,
            "texts": json.dumps(self.texts),
            "adapter": self.adapter,
            "encoder": json.dumps(self.encoder),
            "base_fingerprint": json.dumps(self.base_fingerprint),
        }
        write_safetensors(Path(path), {**flat, _ACTIVE: self.active, _STRENGTH: self.strength}, metadata)

    @classmethod
    def load(cls, path: str | Path, max_bytes: int = MAX_STATE_BYTES) -> MaskState:
        """Read a file that :meth:`save` wrote; safe for files from strangers, and refused above ``max_bytes``.

        Raises:
            AdapterFileError: If the file is missing, too large, corrupt, or not a mask state.
        """
        flat, metadata = read_safetensors(Path(path), max_bytes)
        if metadata.get("format") != _FORMAT:
            raise AdapterFileError(f"{path}: expected a mask state ({_FORMAT!r}), found {metadata.get('format')!r}.")
        active, strength = flat.pop(_ACTIVE, None), flat.pop(_STRENGTH, None)
        if active is None or strength is None or not flat:
            raise AdapterFileError(
                f"{path}: a mask state holds {_ACTIVE}, {_STRENGTH} and the tensors of masks; some are missing."
            )
        if active.dtype != torch.bool or active.dim() != 1 or strength.shape != active.shape or not len(active):
            raise AdapterFileError(f"{path}: {_ACTIVE} must be (rows,) bool and {_STRENGTH} (rows,).")
        if not strength.is_floating_point():
            raise AdapterFileError(f"{path}: {_STRENGTH} must hold floating-point numbers, found {strength.dtype}.")
        tensors: dict[str, LayerTensors] = {}
        for key, value in flat.items():
            name, _, part = key.rpartition(".")
            if not part or value.dim() < 2 or value.shape[0] != len(active) or not value.dtype.is_floating_point:
                raise AdapterFileError(
                    f"{path}: {key[:200]!r} must be MODULE.PART and hold one row of numbers for each of "
                    f"{len(active)} requests."
                )
            # Widened, because masks are made in float32 at least.
            tensors.setdefault(name, {})[part] = value.float() if value.element_size() < 4 else value
        dtypes = {value.dtype for parts in tensors.values() for value in parts.values()}
        if len(dtypes) > 1:
            raise AdapterFileError(f"{path}: the tensors of its masks have several dtypes: {sorted(map(str, dtypes))}.")
        return cls(tensors=tensors, active=active, strength=strength.float(), **_metadata(path, metadata, len(active)))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _metadata(path: str | Path, metadata: dict[str, str], rows: int) -> dict[str, Any]:
    try:
        texts, encoder, base = (parse_json(metadata[key].encode()) for key in ("texts", "encoder", "base_fingerprint"))
        gate, adapter = metadata["gate"], metadata["adapter"]
    except (KeyError, ValueError) as error:
        raise AdapterFileError(f"{path}: its metadata is incomplete or not JSON: {error!r}.") from error
    optional_texts = (str, type(None))
    if (
        not isinstance(texts, list)
        or len(texts) not in (0, rows)
        or not all(isinstance(value, optional_texts) for value in [*texts, encoder, base])
    ):
        raise AdapterFileError(f"{path}: its metadata has values of other types than a mask state's.")
    if gate not in FORMS or max(len(value or "") for value in (adapter, encoder, base)) > _NAME_LENGTH:
        raise AdapterFileError(
            f"{path}: its metadata must name one of the forms {sorted(FORMS)} as its gate, and an adapter, encoder and "
            f"fingerprint of at most {_NAME_LENGTH} characters."
        )
    return {"gate": gate, "adapter": adapter, "encoder": encoder, "base_fingerprint": base, "texts": tuple(texts)}


def _any_rank(shape: tuple[int, ...]) -> tuple[int | str, ...]:
    """Return the shape without the number of low-rank terms, because a sum of states has more terms."""
    return ("terms", *shape[1:]) if len(shape) == 2 else shape


def select_rows(state: MaskState, rows: Sequence[int]) -> MaskState:
    """Return a state of some rows of ``state``, in the order given."""
    index = torch.as_tensor(list(rows), device=state.active.device)
    return replace(
        state,
        tensors={name: {p: value[index] for p, value in parts.items()} for name, parts in state.tensors.items()},
        active=state.active[index],
        strength=state.strength[index],
        texts=tuple(state.texts[i] for i in rows) if state.texts else (),
    )


# ---------------------------------------------------------------- arithmetic


def _scaled(state: MaskState, factor: float) -> MaskState:
    """Return a state of ``factor`` times the logits (``scale``), z (``signed``) or the factors ``a`` (``low_rank``)."""
    _check_form(state)
    if not math.isfinite(factor):
        raise RequestError(f"a mask state can be multiplied by a finite number, found {factor!r}.")
    described: Callable[[str], str] = _negated_text if factor == -1 else lambda text: f"{factor:g} * ({text})"
    return replace(
        state,
        tensors={
            # Not b as well: (-a)(-b) would be the same product again.
            name: {part: value if part == "b" else value * factor for part, value in parts.items()}
            for name, parts in state.tensors.items()
        },
        texts=tuple(None if text is None else described(text) for text in state.texts),
    )


def _added(one: MaskState, other: MaskState) -> MaskState:
    """Return a state that composes two: logits (or z) add up, the terms of ``low_rank`` stand side by side."""
    _check_form(one)
    _check_pair(one, other)
    rows = max(len(one), len(other))
    active = [(state.active & (state.strength != 0)).expand(rows) for state in (one, other)]
    if one.gate in (ScaleForm.name, SignedForm.name):
        strength = _common_strength(one, other, active, rows)
        tensors = [_for_rows(state.tensors, rows, own, None) for state, own in zip((one, other), active, strict=True)]
    else:
        strength = torch.ones(rows, dtype=one.strength.dtype, device=one.strength.device)
        tensors = [
            _for_rows(state.tensors, rows, own, state.strength) for state, own in zip((one, other), active, strict=True)
        ]
    return replace(
        one,
        tensors={name: _joined(parts, tensors[1][name]) for name, parts in tensors[0].items()},
        active=active[0] | active[1],
        strength=strength,
        texts=_joined_texts(one, other, active),
        base_fingerprint=one.base_fingerprint if one.base_fingerprint is not None else other.base_fingerprint,
    )


def _check_form(state: MaskState) -> None:
    if state.gate not in (ScaleForm.name, SignedForm.name, LowRankForm.name):
        raise UnsupportedError(
            f"mask states of gate={state.gate!r} cannot be negated, added or multiplied: the gates are 0 or 1, have no "
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
    """Return, per tensor, its shape without the rows and the number of low-rank terms."""
    return {
        f"{name}.{part}": tuple(value.shape[2:] if value.dim() == 3 else value.shape[1:])
        for name, parts in state.tensors.items()
        for part, value in parts.items()
    }


def _common_strength(one: MaskState, other: MaskState, active: list[Tensor], rows: int) -> Tensor:
    strengths = one.strength.expand(rows), other.strength.expand(rows)
    differ = active[0] & active[1] & (strengths[0] != strengths[1])
    if bool(differ.any()):
        row = int(differ.nonzero()[0])
        raise RequestError(
            f"gate={one.gate!r} adds logits, which have no strength of their own: row {row} has strength "
            f"{float(strengths[0][row]):g} in one state and {float(strengths[1][row]):g} in the other. Make both with "
            "equal strengths, or multiply the states instead."
        )
    return torch.where(active[0], strengths[0], strengths[1])


def _for_rows(
    tensors: dict[str, LayerTensors], rows: int, active: Tensor, strength: Tensor | None
) -> dict[str, LayerTensors]:
    """Return the tensors with ``rows`` rows and the strength folded in; rows without a request hold zeros."""

    def ready(part: str, value: Tensor) -> Tensor:
        by_row = (-1, *[1] * (value.dim() - 1))
        if strength is not None and part in ("a", QUERY):
            value = value * strength.to(value.dtype).reshape(by_row)
        value = value.expand(rows, *value.shape[1:])
        return value if part == "b" else torch.where(active.reshape(by_row), value, torch.zeros_like(value))

    return {name: {part: ready(part, value) for part, value in parts.items()} for name, parts in tensors.items()}


def _joined(one: LayerTensors, other: LayerTensors) -> LayerTensors:
    if "b" in one:
        return {part: torch.cat([one[part], other[part]], dim=1) for part in ("a", "b")}
    return {part: value + other[part] for part, value in one.items()}


def _joined_texts(one: MaskState, other: MaskState, active: list[Tensor]) -> tuple[str | None, ...]:
    if not one.texts and not other.texts:
        return ()
    columns = [_texts_by_row(state, own) for state, own in zip((one, other), active, strict=True)]
    return tuple(_joined_text(a, b) for a, b in zip(*columns, strict=True))


def _texts_by_row(state: MaskState, active: Tensor) -> list[str | None]:
    rows = active.tolist()
    texts = list(state.texts) or [None] * len(state)
    if len(texts) != len(rows):
        texts = texts * len(rows)
    # A request that was a vector has no text, but is part of the sum.
    return [
        (text if text is not None else "(a vector)") if active else None
        for text, active in zip(texts, rows, strict=True)
    ]


def _joined_text(one: str | None, other: str | None) -> str | None:
    return one if other is None else other if one is None else f"{one} + {other}"


def _negated_text(text: str) -> str:
    return text[2:-1] if _is_negated(text) else f"-({text})"


def _is_negated(text: str) -> bool:
    """Return True if ``text`` is one pair of brackets behind a minus, as in -(a + b)."""
    if not (text.startswith("-(") and text.endswith(")")):
        return False
    depth = 0
    for place, letter in enumerate(text[1:-1], 1):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and place < len(text) - 1:
            return False
    return depth == 1
