"""A task small enough to learn in seconds, with an encoder that says plainly what a request asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from benchmark.baselines import RankerTask, RequestParser
from torch import Tensor

from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.request_batches import GeneratorOptions


class Signs:
    """Encodes a text as +1 for each attribute asked for, -1 for each asked against, and a constant."""

    name = "signs"

    def __init__(self, attributes: Sequence[str]) -> None:
        self._attributes = attributes
        self._parser = RequestParser(attributes)
        self.dim = len(attributes) + 1

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([self._vector(text) for text in texts])

    def _vector(self, text: str) -> list[float]:
        request = self._parser(text)
        return [*(float(a in request.wanted) - float(a in request.unwanted) for a in self._attributes), 0.5]


@pytest.fixture(scope="session")
def encoder(catalogue: Catalogue) -> Signs:
    return Signs(catalogue.attributes)


@pytest.fixture
def make_task(sasrec: SASRec, encoder: Signs, catalogue: Catalogue, split: Split) -> Callable[..., RankerTask]:
    """Makes a task of a few steps around a fresh trained SASRec."""

    def make(seed: int = 0, **options: Any) -> RankerTask:
        settings = {"steps": 80, "learning_rate": 1e-2, "batch_size": 16, **options}
        return RankerTask(sasrec, encoder, catalogue, split, GeneratorOptions(**settings), seed)

    return make
