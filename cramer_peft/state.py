"""What the gates of some requests are made from, kept: to look at, to save, to use again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import AdapterFileError
from cramer_peft.gates import GATES, LayerTensors
from cramer_peft.state_arithmetic import added, scaled
from cramer_peft.storage.files import parse_json, read_safetensors, write_safetensors

MAX_STATE_BYTES = 2 * 2**30

_NAME_LENGTH = 1000
_FORMAT = "cramer-peft mask state 1"
_ACTIVE, _STRENGTH = "__active__", "__strength__"


@dataclass(frozen=True)
class MaskState:
    """The generator's outputs for some requests.

    States of one adapter can be added, subtracted, negated and multiplied by numbers: ``a + b`` composes,
    ``-a`` turns each deviation from the identity round, ``2 * a`` strengthens it. For ``scale`` the logits are
    added and multiplied, for ``low_rank`` only the factors ``a`` are, and a sum holds the terms of both. A state
    of one row is added to every row of the other; rows without a request count as nothing. ``topk`` has no
    arithmetic.

    Attributes:
        tensors: Per masked module and part, a tensor with one row per request: ``row_logits`` and
            ``column_logits`` for the gates ``scale`` and ``topk``, the terms ``a`` (rows, rank, out) and
            ``b`` (rows, rank, in) for ``low_rank``.
        active: Which rows have a request, (rows,) bool; the others are the frozen model's.
        strength: Strength per row, (rows,) float32.
        gate: Name of the form of the masks.
        texts: The text of each row, None where it had none.
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
        return added(self, other) if isinstance(other, MaskState) else NotImplemented

    def __radd__(self, other: object) -> MaskState:
        # sum() starts at 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: MaskState) -> MaskState:
        return added(self, -other) if isinstance(other, MaskState) else NotImplemented

    def __neg__(self) -> MaskState:
        return scaled(self, -1)

    def __mul__(self, factor: float) -> MaskState:
        return scaled(self, float(factor)) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def to(self, *args: Any, **kwargs: Any) -> MaskState:
        """A copy with its tensors moved or cast, as ``torch.Tensor.to`` does."""
        tensors = {
            name: {part: value.to(*args, **kwargs) for part, value in parts.items()}
            for name, parts in self.tensors.items()
        }
        device = next(iter(next(iter(tensors.values())).values())).device
        return replace(self, tensors=tensors, active=self.active.to(device), strength=self.strength.to(device))

    def detach(self) -> MaskState:
        """A copy cut off from the graph that made it."""
        tensors = {name: {p: value.detach() for p, value in parts.items()} for name, parts in self.tensors.items()}
        return replace(self, tensors=tensors)

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
        """Read a file that :meth:`save` wrote; safe for files from strangers.

        Args:
            path: The file.
            max_bytes: Size above which it is refused before it is read.

        Raises:
            AdapterFileError: If the file is missing, too large, corrupt, or not a mask state.
        """
        flat, metadata = read_safetensors(Path(path), max_bytes)
        if metadata.get("format") != _FORMAT:
            raise AdapterFileError(f"{path}: expected a mask state ({_FORMAT!r}), found {metadata.get('format')!r}.")
        active, strength = flat.pop(_ACTIVE, None), flat.pop(_STRENGTH, None)
        if active is None or strength is None or not flat:
            raise AdapterFileError(
                f"{path}: a mask state holds {_ACTIVE}, {_STRENGTH} and gate tensors; some are missing."
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
            # Gates are made in float32 at least; a narrower file loses nothing by it.
            tensors.setdefault(name, {})[part] = value.float() if value.element_size() < 4 else value
        dtypes = {value.dtype for parts in tensors.values() for value in parts.values()}
        if len(dtypes) > 1:
            raise AdapterFileError(f"{path}: its gate tensors are of several dtypes: {sorted(map(str, dtypes))}.")
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
    if gate not in GATES or max(len(value or "") for value in (adapter, encoder, base)) > _NAME_LENGTH:
        raise AdapterFileError(
            f"{path}: its metadata must name a gate of {sorted(GATES)}, and an adapter, encoder and fingerprint of at "
            f"most {_NAME_LENGTH} characters."
        )
    return {"gate": gate, "adapter": adapter, "encoder": encoder, "base_fingerprint": base, "texts": tuple(texts)}


def select_rows(state: MaskState, rows: Sequence[int]) -> MaskState:
    """A state of some rows of ``state``, in the order given."""
    index = torch.as_tensor(list(rows), device=state.active.device)
    return replace(
        state,
        tensors={name: {p: value[index] for p, value in parts.items()} for name, parts in state.tensors.items()},
        active=state.active[index],
        strength=state.strength[index],
        texts=tuple(state.texts[i] for i in rows) if state.texts else (),
    )
