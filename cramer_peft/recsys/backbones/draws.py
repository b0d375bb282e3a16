"""Random numbers of a backbone's loss. They do not depend on the number of processes that share a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cramer_peft.training import Share

_SHARED: ContextVar[tuple[torch.Generator, Share] | None] = ContextVar("shared draws", default=None)


@contextmanager
def shared_draws(generator: torch.Generator | None, share: Share | None) -> Iterator[None]:
    """Draw for the whole batch inside the block, each process its rows; None: torch's global generator, unshared."""
    token = _SHARED.set(None if generator is None or share is None else (generator, share))
    try:
        yield
    finally:
        _SHARED.reset(token)


def uniform_rows(rows: int, width: int, device: torch.device) -> Tensor:
    """Draw numbers from 0 to 1 for each row of a batch, (rows, width) float32."""
    shared = _SHARED.get()
    if shared is None:
        return torch.rand(rows, width, device=device)
    generator, share = shared
    return torch.rand(share.total, width, device=device, generator=generator)[share.rows]


def integers(below: int, count: int, device: torch.device) -> Tensor:
    """Draw integers from 0 to ``below`` - 1 with replacement, (count,) int64, the same on all processes."""
    shared = _SHARED.get()
    return torch.randint(below, (count,), device=device, generator=None if shared is None else shared[0])
