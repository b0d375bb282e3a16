"""The processes of a training, and the rows of a batch that each works on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHARE = "share"  # key of Share.as_tensor in a batch


@dataclass(frozen=True)
class Share:
    """A process's rows of a batch that several processes work on.

    Attributes:
        start: First row.
        stop: Row after the last; equal to ``start`` if there are fewer rows than processes and none is left.
        total: Rows of the whole batch, 1 or more.
    """

    start: int
    stop: int
    total: int

    @property
    def empty(self) -> bool:
        """True if no row is left for this process."""
        return self.start == self.stop

    @property
    def rows(self) -> slice:
        """The rows to work on. If none is left it is the first row, which must then not count."""
        return slice(0, 1) if self.empty else slice(self.start, self.stop)

    def as_tensor(self) -> Tensor:
        """Return the share as a tensor to put into a batch, (3,) int64."""
        return torch.tensor([self.start, self.stop, self.total])

    @classmethod
    def from_tensor(cls, values: Tensor) -> Share:
        """Return the share of which :meth:`as_tensor` gave ``values``."""
        start, stop, total = values.tolist()
        return cls(start, stop, total)


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        index: Number of this process, from 0.
        count: Number of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """Return the processes that ``accelerate launch`` or ``torchrun`` started; one if neither did."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def writes(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.index == 0

    def share(self, total: int) -> Share:
        """Return this process's rows of a batch of ``total`` rows; the shares differ by at most one row."""
        return Share(total * self.index // self.count, total * (self.index + 1) // self.count, total)

    def own_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch of tensors (rows, …) cut to this process's rows, with its share under the key ``"share"``.

        With one process it is the batch itself.
        """
        if self.count == 1:
            return batch
        share = self.share(len(next(iter(batch.values()))))
        return {**{name: value[share.rows] for name, value in batch.items()}, SHARE: share.as_tensor()}
