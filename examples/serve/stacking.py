"""Takes mask states apart into rows and puts rows of several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from cramer_peft import MaskState


def rows_of(state: MaskState) -> list[MaskState]:
    """One state for each row, with memory of its own, so that keeping one does not keep the whole batch."""
    return [
        replace(
            state,
            tensors={
                name: {p: v[i : i + 1].clone() for p, v in parts.items()} for name, parts in state.tensors.items()
            },
            active=state.active[i : i + 1].clone(),
            strength=state.strength[i : i + 1].clone(),
            texts=state.texts[i : i + 1],
        )
        for i in range(len(state))
    ]


def stacked(rows: Sequence[MaskState | None]) -> MaskState | None:
    """States of one row each as one of several rows; None is a row that asks nothing.

    Args:
        rows: States of one adapter.

    Returns:
        The state, with as many rows; None where no row asks anything.
    """
    first = next((row for row in rows if row is not None), None)
    if first is None:
        return None
    parts_of = {name: tuple(parts) for name, parts in first.tensors.items()}
    blank = {name: {p: torch.zeros_like(v) for p, v in parts.items()} for name, parts in first.tensors.items()}
    tensors = [blank if row is None else row.tensors for row in rows]
    return replace(
        first,
        tensors={n: {p: torch.cat([row[n][p] for row in tensors]) for p in parts} for n, parts in parts_of.items()},
        active=torch.cat([torch.zeros_like(first.active) if row is None else row.active for row in rows]),
        strength=torch.cat([torch.ones_like(first.strength) if row is None else row.strength for row in rows]),
        texts=tuple(text for row in rows for text in ((None,) if row is None else row.texts)),
    )
