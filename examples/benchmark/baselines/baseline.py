"""What a baseline is: it learns from the same data as the masks, and scores a catalogue under requests."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import ConfigError, RequestError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.training.generator_training import GeneratorOptions


@dataclass(frozen=True)
class RankerTask:
    """What every baseline is given, so that all learn from the same.

    Attributes:
        backbone: The trained checkpoint. It is copied, never touched.
        encoder: Encodes requests, and item texts where a baseline reads them.
        catalogue: The items and their attributes.
        split: Histories. Validation targets serve to tune, test targets are not looked at.
        options: Budget of steps, shares of requests and weights of the losses, as for a generator.
        seed: Of initialisation, order and requests.
        progress: Whether to show progress bars.
    """

    backbone: SASRec
    encoder: RequestEncoder
    catalogue: Catalogue
    split: Split
    options: GeneratorOptions = field(default_factory=GeneratorOptions)
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, CachedEncoder):
            object.__setattr__(self, "encoder", CachedEncoder(self.encoder))


@runtime_checkable
class RequestRanker(Protocol):
    """Anything that ranks a catalogue under requests; its ``scores`` is what ``evaluate`` takes.

    Attributes:
        name: For tables.
    """

    name: str

    @property
    def trainable(self) -> int:
        """Number of parameters that ``fit`` trains; 0 before, and where nothing is trained."""

    def fit(self, task: RankerTask) -> None:
        """Learn from a task, or only keep what is needed of it. The task's backbone stays as it is."""

    def scores(self, histories: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Scores of the whole catalogue, (rows, items).

        Args:
            histories: As ``pad_histories`` makes them, (rows, length) int64.
            requests: One text for each row. Rows of None or blank text get the frozen model's scores, exactly.
        """


class BaselineRanker(ABC):
    """The part that all baselines share: the frozen model for rows that ask nothing.

    Args:
        name: For tables.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trainable = 0
        self._frozen: SASRec | None = None

    def fit(self, task: RankerTask) -> None:
        """Learn from a task; its backbone is copied."""
        frozen = frozen_copy(task.backbone)
        self._fit(task, frozen)
        self._frozen = frozen

    @torch.no_grad()
    def scores(self, histories: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Scores, (rows, items), where the backbone is; rows without a request are the frozen model's.

        Raises:
            ConfigError: Before :meth:`fit`.
            RequestError: If there is not one request for each row.
        """
        if self._frozen is None:
            raise ConfigError(f"{self.name} has not been fitted: call fit(task) before scores.")
        if len(requests) != len(histories):
            raise RequestError(
                f"{self.name}: found {len(requests)} requests, expected one for each of {len(histories)} rows."
            )
        histories = brought_to(self._frozen, histories)
        frozen: Tensor = self._frozen(histories)
        rows = asked_rows(requests)
        if not rows:
            return frozen
        index = torch.tensor(rows, device=frozen.device)
        texts = [str(requests[row]) for row in rows]
        return frozen.index_copy(0, index, self._asked(histories[index], texts, frozen[index]))

    @abstractmethod
    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        """Learn; ``frozen`` is the ranker's own copy."""

    @abstractmethod
    def _asked(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        """Scores of rows that all ask something; ``frozen`` holds the frozen model's, (rows, items)."""


def asked_rows(requests: Sequence[str | None]) -> list[int]:
    """Rows that ask something."""
    return [row for row, request in enumerate(requests) if request is not None and request.strip()]


def frozen_copy(backbone: SASRec) -> SASRec:
    """A copy in eval mode whose parameters take no gradients."""
    own = copy.deepcopy(backbone)
    own.requires_grad_(False)
    own.zero_grad(set_to_none=True)
    own.eval()
    return own
