from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmark.transfer.alignment import ItemAlignment, item_table
from benchmark.transfer.generators import TransferOptions, carry_masks, target_encoder, transfer_rankers
from benchmark.transfer.target_backbone import adapt_backbone

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import BaseModelMismatchError, DataError, EncoderError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.users import mask_scorer
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, request_encoder, without_cache
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")

GAMES, LENGTH = 24, 8


def test_masks_are_carried_only_where_the_weights_are_the_same(
    sasrec: SASRec,
    alignment: ItemAlignment,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
    make_sasrec: Callable[..., SASRec],
    quick: BackboneOptions,
) -> None:
    target = adapt_backbone(sasrec, alignment, played, quick)
    masks = inject_request_masks(sasrec, hashing(init_weights=False))
    items = torch.tensor([[1, 5, 9, 0, 0, 0, 0, 0]])
    frozen = target(items)
    carried = carry_masks(masks, target)
    assert torch.equal(carried(items, request=None), frozen)
    assert not torch.equal(carried(items, request="something funny"), frozen)
    with pytest.raises(BaseModelMismatchError):
        carry_masks(masks, make_sasrec(num_items=GAMES, hidden_size=64))


def test_masks_on_the_scoring_of_items_are_not_carried(
    sasrec: SASRec, hashing: Callable[..., RequestMaskConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = inject_request_masks(sasrec, hashing(init_weights=False, target_modules=["layer.1.output.dense"]))
    monkeypatch.setattr(type(sasrec), "head_targets", ["1.output.dense"], raising=False)  # stands for the head
    with pytest.raises(DataError, match=r"layer.1.output.dense, which scores the source's items"):
        carry_masks(masks, sasrec)


def test_little_training_starts_from_the_source_and_scratch_does_not(
    sasrec: SASRec,
    alignment: ItemAlignment,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
    quick: BackboneOptions,
) -> None:
    target = adapt_backbone(sasrec, alignment, played, quick)
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    masks = inject_request_masks(sasrec, hashing(init_weights=False))
    options = TransferOptions(GeneratorOptions(steps=10, batch_size=8), little=0.2, full=True)
    rankers = transfer_rankers(masks, target, games, played, options)
    assert list(rankers) == ["zero-shot", "little training", "scratch", "full training"]
    own = masks.generator.state_dict()
    changes = {
        name: max(float((tensor - own[key]).abs().max()) for key, tensor in ranker.generator.state_dict().items())
        for name, ranker in rankers.items()
    }
    assert changes["zero-shot"] == 0
    assert 0 < changes["little training"] < changes["scratch"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    assert all(torch.equal(item_table(ranker.model), item_table(target)) for ranker in rankers.values())
    with pytest.raises(DataError, match="little: found 0"):
        transfer_rankers(masks, target, games, played, replace(options, little=0))
    scores = mask_scorer(rankers["zero-shot"])(torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0]]), ["a comedy"])
    assert scores.shape == (1, GAMES)


def test_requests_are_read_in_terms_of_the_catalogue_that_is_ranked(
    sasrec: SASRec,
    catalogue: Catalogue,
    alignment: ItemAlignment,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
    quick: BackboneOptions,
) -> None:
    pytest.importorskip("wordllama")
    target = adapt_backbone(sasrec, alignment, played, quick)
    plain = inject_request_masks(copy.deepcopy(sasrec), hashing())
    assert target_encoder(plain, target, games) is None
    own = request_encoder(None, catalogue, sasrec)
    config = RequestMaskConfig(target_modules=["intermediate.dense", "output.dense"], init_weights=False)
    masks = inject_request_masks(sasrec, config, encoder=own)
    found = target_encoder(masks, target, games)
    assert isinstance(found, CatalogueEncoder)
    assert found.reader is without_cache(own).reader
    embeddings = item_table(target)
    assert torch.equal(found.features, CatalogueEncoder(games, embeddings, found.reader).features)
    options = TransferOptions(GeneratorOptions(steps=2, batch_size=8), little=0.5)
    rankers = transfer_rankers(masks, target, games, played, options)
    for ranker in rankers.values():
        assert torch.equal(ranker.encode(["a comedy"]).cpu(), found.encode(["a comedy"]))
    items = torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0]])
    carried = rankers["zero-shot"]
    assert not torch.equal(carried(items, request="a comedy"), carried(items, request="an action game"))
    with pytest.raises(EncoderError, match="needs a catalogue and a backbone"):
        carry_masks(masks, target).encode(["a comedy"])
