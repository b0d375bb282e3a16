"""A second domain of 24 items, and its alignment with the first."""

from __future__ import annotations

import random

import pytest
import torch
from benchmark.transfer.alignment import ItemAlignment, align_items

from cramer_peft import HashingEncoder
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions

KINDS = ("Action", "Comedy", "Puzzle")  # the source knows the first two

GAMES, LENGTH = 24, 8


@pytest.fixture(scope="module")
def games() -> Catalogue:
    """A second domain: item n is of kind n mod 3; item 0 has the title of the source's item 4."""
    titles = ["Action tale 4", *(f"game {number}" for number in range(1, GAMES))]
    has = torch.eye(3, dtype=torch.bool).repeat(GAMES // 3, 1)
    return Catalogue(tuple(f"g{number}" for number in range(GAMES)), tuple(titles), KINDS, has)


@pytest.fixture(scope="module")
def played(games: Catalogue) -> Split:
    rng = random.Random(0)
    histories = [torch.tensor(rng.sample(range(user % 3, GAMES, 3), 7)) for user in range(30)]
    before, last = torch.stack([h[-2] for h in histories]), torch.stack([h[-1] for h in histories])
    return Split(tuple(h[:-2] for h in histories), before, last)


@pytest.fixture(scope="module")
def text() -> HashingEncoder:
    return HashingEncoder(32)


@pytest.fixture
def alignment(
    sasrec: SASRec, catalogue: Catalogue, split: Split, games: Catalogue, text: HashingEncoder
) -> ItemAlignment:
    return align_items(sasrec, catalogue, split, games, text)


@pytest.fixture(scope="module")
def quick() -> BackboneOptions:
    return BackboneOptions(epochs=2, learning_rate=5e-3, batch_size=8, patience=2)
