"""The base class of encoders that run a torch module: batches, gradients for tuning, names of tunable parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.encoders.tuned import tunable_names


class ModuleEncoder(ABC):
    """Encodes texts by a frozen torch module in eval mode, batch by batch, as vectors of width ``dim``."""

    module: nn.Module
    dim: int
    _batch_size: int

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32; NaN for a text without a token."""
        return self.encode_with(texts, self.module)

    def encode_with(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        """Return the vectors of ``texts``, with ``run(…)`` in place of ``self.module(…)``; see ``TunableEncoder``."""
        if not texts:
            return torch.empty(0, self.dim)
        starts = range(0, len(texts), self._batch_size)
        return torch.cat([self._encode_batch(texts[start : start + self._batch_size], run) for start in starts])

    def tunable_names(self, regime: str) -> list[str]:
        """Return the names of the parameters that the regime "last" or "all" tunes."""
        return tunable_names(self.module, regime)

    @abstractmethod
    def _encode_batch(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        """Return the vectors of one batch."""
