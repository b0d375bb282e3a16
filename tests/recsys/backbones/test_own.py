"""A recommender of one's own: masked, trained, saved and loaded by its scores alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import DataError
from cramer_peft.recsys import GeneratorOptions, RequestRecommender, train_generator
from cramer_peft.recsys.backbones import ItemScorer, OwnBackbone, padded_left
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.catalogue_encoder import item_embeddings


class Average(OwnBackbone):
    def __init__(self, items: int = 40) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.table = nn.Embedding(items + 1, 8, padding_idx=0)
        self.num_items, self.max_length = items, 8

    @property
    def item_vectors(self) -> Tensor:
        return self.table.weight.detach()[1:]

    def scores(self, item_ids: Tensor) -> Tensor:
        return self.table(item_ids).sum(1) @ self.table.weight[1:].T


class Popularity(OwnBackbone):
    """No weights, and the same tensor each time."""

    num_items, max_length = 40, 8
    kept = torch.linspace(1.0, 0.0, 40)[None]

    def scores(self, item_ids: Tensor) -> Tensor:
        return self.kept if len(item_ids) == 1 else self.kept.expand(len(item_ids), -1)


def recommender(
    backbone: OwnBackbone, catalogue: Catalogue, hashing: Callable[..., RequestMaskConfig]
) -> RequestRecommender:
    return RequestRecommender(mask_backbone(backbone.eval(), catalogue, hashing(init_weights=False)), catalogue)


def test_it_is_a_scorer_of_items(catalogue: Catalogue) -> None:
    assert isinstance(Average(), ItemScorer)
    embeddings = item_embeddings(Average())
    assert embeddings is not None
    assert embeddings.shape == (40, 8)
    with pytest.raises(NotImplementedError, match="OwnBackbone must define scores"):
        OwnBackbone()(torch.ones(1, 1, dtype=torch.long))


def test_positions_are_prefixes() -> None:
    model, item_ids = Average(), torch.tensor([[3, 9, 4, 0], [7, 0, 0, 0]])
    each = model(item_ids, positions=torch.tensor([[0, 2], [0, 0]]))
    assert each.shape == (2, 2, 40)
    torch.testing.assert_close(each[:, 1], model(item_ids))
    torch.testing.assert_close(each[0, 0], model(item_ids[:1, :1])[0])


def test_training_and_files(
    catalogue: Catalogue, split: Split, hashing: Callable[..., RequestMaskConfig], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    own = RequestRecommender(mask_backbone(Average().requires_grad_(False), catalogue, hashing()), catalogue)
    assert own.recommend([3, 7], "more horror").items == own.recommend([3, 7], None).items
    train_generator(own.masks, catalogue, split, GeneratorOptions(steps=20, batch_size=8), progress=False)
    answer = own.recommend([3, 7], "more horror", strength=5.0)
    assert answer.items != answer.frozen_items
    own.save(tmp_path)
    assert not (tmp_path / "backbone").exists()
    again = RequestRecommender.load(tmp_path, backbone=Average().eval())
    assert again.recommend([3, 7], "more horror", strength=5.0) == answer
    with pytest.raises(DataError, match="backbone is missing"):
        RequestRecommender.load(tmp_path)


def test_scores_that_the_recommender_keeps_stay(
    catalogue: Catalogue, hashing: Callable[..., RequestMaskConfig]
) -> None:
    own = recommender(Popularity(), catalogue, hashing)
    assert own.recommend([[0], [39]], ["more horror", None], k=3)[1].items == [0, 1, 2]
    assert own.recommend([0], "more horror", strength=9.0).items != list(range(1, 11))
    assert torch.equal(Popularity.kept, torch.linspace(1.0, 0.0, 40)[None])


def test_another_number_of_items(catalogue: Catalogue, hashing: Callable[..., RequestMaskConfig]) -> None:
    with pytest.raises(DataError, match="each of the 40 items"):
        recommender(Average(30), catalogue, hashing)


def test_padding_moves_to_the_left() -> None:
    found = padded_left(torch.tensor([[3, 1, 2], [5, 0, 0], [0, 0, 0], [4, 4, 0]]))
    assert found.tolist() == [[3, 1, 2], [0, 0, 5], [0, 0, 0], [0, 4, 4]]
