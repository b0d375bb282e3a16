"""The interface of baselines: they learn from the same data as the masks, and score a catalogue under requests."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import ConfigError, RequestError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.devices import brought_to
from cramer_peft.recsys.requests.sources import Weights
from cramer_peft.recsys.training.request_batches import GeneratorOptions


@dataclass(frozen=True)
class RankerTask:
    """The training task of a baseline, the same for all of them.

    Attributes:
        backbone: The trained checkpoint. It is copied, never touched.
        encoder: Encodes requests, and item texts for baselines that read them.
        catalogue: The items and their attributes.
        split: Histories. Baselines may tune on validation targets; test targets are not looked at.
        options: Budget of steps, shares of requests and weights of the losses, as for a generator.
        seed: Seed of initialisation, order and requests.
        progress: Whether to show progress bars.
        requests: The weight of each source of training requests, as ``train_generator`` takes it, for all methods that
            learn. None: what ``said`` holds and sentences about attributes alike, or what there is of them.
        said: The requests of training visits that the data states: (history, text, item).
        asked: The request of each validation target, or None, which methods that are tuned are tuned on; None:
            sentences about attributes.
    """

    backbone: SASRec
    encoder: RequestEncoder
    catalogue: Catalogue
    split: Split
    options: GeneratorOptions = field(default_factory=GeneratorOptions)
    seed: int = 0
    progress: bool = False
    requests: Weights | None = None
    said: Sequence[tuple[Sequence[int] | Tensor, str, int]] = ()
    asked: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, CachedEncoder):
            object.__setattr__(self, "encoder", CachedEncoder(self.encoder))


@runtime_checkable
class RequestRanker(Protocol):
    """Anything that ranks a catalogue under requests; its ``scores`` is a scorer for the evaluation.

    Attributes:
        name: The name in tables.
    """

    name: str

    @property
    def trainable(self) -> int:
        """Number of parameters that ``fit`` trains; 0 before it, and if nothing is trained."""

    def fit(self, task: RankerTask) -> None:
        """Learn from a task, or only keep parts of it. The task's backbone stays as it is."""

    def scores(self, histories: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Return scores of the whole catalogue, (rows, items).

        Args:
            histories: Padded histories, (rows, length) int64.
            requests: One text for each row. Rows of None or blank text get the frozen model's scores, exactly.
        """


class BaselineRanker(ABC):
    """The part that all baselines share: rows without a request get the frozen model's scores.

    Args:
        name: The name in tables.
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
        """Return scores, (rows, items), on the backbone's device; rows without a request are the frozen model's.

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
        rows = request_rows(requests)
        if not rows:
            return frozen
        index = torch.tensor(rows, device=frozen.device)
        texts = [str(requests[row]) for row in rows]
        return frozen.index_copy(0, index, self._request_scores(histories[index], texts, frozen[index]))

    def mean_scorer(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor] | None:
        """Return a scorer of histories under the mean of some requests, one for everybody; None: there is none.

        Args:
            texts: Requests, of which the mean of the vectors is taken, or what is nearest to it in this method.
        """
        return None

    @abstractmethod
    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        """Learn; ``frozen`` is the ranker's own copy."""

    @abstractmethod
    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        """Return scores of rows that all have a request; ``frozen`` holds the frozen model's, (rows, items)."""


def request_rows(requests: Sequence[str | None]) -> list[int]:
    """Return the rows that have a request."""
    return [row for row, request in enumerate(requests) if request is not None and request.strip()]


def frozen_copy(backbone: SASRec) -> SASRec:
    """Return a copy in eval mode whose parameters take no gradients."""
    own = copy.deepcopy(backbone)
    own.requires_grad_(False)
    own.zero_grad(set_to_none=True)
    own.eval()
    return own
