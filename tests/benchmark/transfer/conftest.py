"""A second domain of 24 items, and a generator that reads texts alone."""

from __future__ import annotations

import random

import pytest
import torch

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.request_encoders import request_encoder

KINDS = ("Action", "Comedy", "Puzzle")  # the source knows the first two

GAMES = 24


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


@pytest.fixture
def texts(sasrec: SASRec, catalogue: Catalogue) -> RequestMaskModel:
    """The source's backbone under masks that read texts alone, with a random generator."""
    pytest.importorskip("wordllama")
    encoder = request_encoder("catalogue-text", catalogue, sasrec)
    return mask_backbone(sasrec, catalogue, RequestMaskConfig(init_weights=False), encoder)
