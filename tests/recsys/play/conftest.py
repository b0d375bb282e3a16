"""A small recommender that hears, with titles that would harm a careless page, behind the app."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from cramer_peft import RequestMaskConfig
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.request_encoders import request_encoder

if not all(map(find_spec, ("starlette", "uvicorn", "wordllama", "snowballstemmer"))):
    collect_ignore_glob = ["test_*.py"]  # a minimal install

GENRES = ("Action", "Comedy", "Drama", "Horror")
SCRIPT = "<script>window.harmed = 1</script>"
IMAGE = '<img src="x" onerror="window.harmed = 1">'
ITEMS = 40


@pytest.fixture(scope="session")
def films() -> Catalogue:
    """40 items of four genres, half of them classics, one a year from 1980 on; the first ones are the best known."""
    titles = [f"Tale {item} of {GENRES[item % 4].lower()}" for item in range(ITEMS)]
    titles[0], titles[1], titles[2], titles[5] = SCRIPT, IMAGE, "Toy Story", "Toy Story 2"
    flags = torch.zeros(ITEMS, 5, dtype=torch.bool)
    for item in range(ITEMS):
        flags[item, [0, 2, 3, 4][item % 4]] = True
        flags[item, 1] = item // 4 % 2 == 1
    years = torch.arange(1980, 1980 + ITEMS, dtype=torch.float64)
    tags = tuple("quirky|slow" if item == 7 else "" for item in range(ITEMS))
    names = ("Action", "Classic", "Comedy", "Drama", "Horror")
    ids = tuple(f"i{item}" for item in range(ITEMS))
    catalogue = Catalogue(ids, tuple(titles), names, flags, texts={"tags": tags}, numbers={"year": years})
    return catalogue.with_popularity([ITEMS - item for item in range(ITEMS)])


@pytest.fixture(scope="session")
def recommender(films: Catalogue) -> RequestRecommender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SASRec(SASRec.configure(ITEMS, hidden_size=16)).eval()
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight.mul_(20)
        encoder = request_encoder(None, films, model, {"words": "wordllama"})
        masks = mask_backbone(model, films, RequestMaskConfig(init_weights=False, strength=4.0), encoder)
    return RequestRecommender(masks, films)
