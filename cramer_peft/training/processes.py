"""Which process this is, and which rows of a batch are its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SHARE = "share"  # a batch's key of what Share.as_tensor gives


@dataclass(frozen=True)
class Share:
    """A process's rows of a batch that several processes work on.

    Attributes:
        start: First row.
        stop: Row after the last; ``start`` where there are fewer rows than processes and none is left for this one.
        total: Rows of the whole batch, 1 or more.
    """

    start: int
    stop: int
    total: int

    @property
    def empty(self) -> bool:
        """Whether no row is left for this process."""
        return self.start == self.stop

    @property
    def rows(self) -> slice:
        """The rows to work on; the first one, which must then count for nothing, where none is left."""
        return slice(0, 1) if self.empty else slice(self.start, self.stop)

    def as_tensor(self) -> Tensor:
        """For a batch: (3,) int64."""
        return torch.tensor([self.start, self.stop, self.total])

    @classmethod
    def from_tensor(cls, values: Tensor) -> Share:
        """What :meth:`as_tensor` was made of."""
        start, stop, total = values.tolist()
        return cls(start, stop, total)


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        index: Which of them this is, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """As ``accelerate launch`` or ``torchrun`` started them; one where nothing did."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints; the others leave that to it."""
        return self.index == 0

    def share(self, total: int) -> Share:
        """This process's rows of a batch of so many; the shares differ by at most one row."""
        return Share(total * self.index // self.count, total * (self.index + 1) // self.count, total)

    def own_rows(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of tensors (rows, …) cut to this process's rows, and which these are under the key ``"share"``.

        With one process it is the batch itself.
        """
        if self.count == 1:
            return batch
        share = self.share(len(next(iter(batch.values()))))
        return {**{name: value[share.rows] for name, value in batch.items()}, SHARE: share.as_tensor()}
