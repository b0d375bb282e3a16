from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmark.baselines import RankerTask
from benchmark.transfer.generators import TransferOptions, carry_masks, transfer_rankers

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")

GAMES, LENGTH = 24, 8
ITEMS = torch.tensor([[1, 5, 9, 0, 0, 0, 0, 0]])


def test_masks_are_carried_to_a_backbone_and_a_catalogue_of_other_sizes(
    texts: RequestMaskModel, make_sasrec: Callable[..., SASRec], games: Catalogue
) -> None:
    target = make_sasrec(num_items=GAMES, hidden_size=64)
    frozen = target(ITEMS)
    carried = carry_masks(texts, target, games)
    assert torch.equal(carried(ITEMS, request=None), frozen)
    assert not torch.equal(carried(ITEMS, request="a comedy"), frozen)
    own = texts.generator.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in carried.generator.state_dict().items())
    expected = CatalogueEncoder(games, None)
    assert torch.equal(carried.encode(["a puzzle"]).cpu(), expected.encode(["a puzzle"]))


def test_a_generator_that_learned_films_moves_games(
    sasrec: SASRec, catalogue: Catalogue, split: Split, make_sasrec: Callable[..., SASRec], games: Catalogue
) -> None:
    pytest.importorskip("wordllama")
    masks = mask_backbone(sasrec, catalogue, None, request_encoder("catalogue-text", catalogue, sasrec))
    train_generator(masks, catalogue, split, GeneratorOptions(steps=30, batch_size=16), progress=False)
    carried = carry_masks(masks, make_sasrec(num_items=GAMES), games)
    raised = (carried(ITEMS, request="a comedy") - carried(ITEMS, request=None))[0].detach()
    comedies = games.item_attributes[:, 1]
    assert raised[comedies].mean() > raised[~comedies].mean()


def test_what_means_something_else_elsewhere_is_not_carried(
    sasrec: SASRec, catalogue: Catalogue, games: Catalogue, hashing: Callable[..., RequestMaskConfig]
) -> None:
    pytest.importorskip("wordllama")
    with pytest.raises(DataError, match=r"expected 'catalogue-text'"):
        carry_masks(inject_request_masks(copy.deepcopy(sasrec), hashing()), sasrec, games)
    config = RequestMaskConfig(target_modules=["output.dense"])
    inside = inject_request_masks(
        copy.deepcopy(sasrec), config, encoder=request_encoder("catalogue-text", catalogue, sasrec)
    )
    with pytest.raises(DataError, match=r"output.dense, whose numbers mean something else"):
        carry_masks(inside, sasrec, games)


def test_only_the_others_are_trained_on_the_target(
    texts: RequestMaskModel, make_sasrec: Callable[..., SASRec], games: Catalogue, played: Split
) -> None:
    target = make_sasrec(num_items=GAMES)
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    own = {name: tensor.clone() for name, tensor in texts.generator.state_dict().items()}
    task = RankerTask(
        target, request_encoder(None, games, target), games, played, GeneratorOptions(steps=10, batch_size=8)
    )
    options = TransferOptions(RequestMaskConfig(), little=0.2, full=True)
    assert {name: budget.steps for name, budget in options.budgets(task.options).items()} == {
        "little training": 2,
        "full training": 10,
    }
    scorers = transfer_rankers(texts, task, options)
    assert list(scorers) == ["zero-shot", "text fusion", "little training", "full training"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in texts.generator.state_dict().items())
    found = [scorer(ITEMS, ["a comedy"]) for scorer in scorers.values()]
    assert all(scores.shape == (1, GAMES) for scores in found)
    assert not any(torch.equal(found[0], other) for other in found[1:])
    with pytest.raises(DataError, match="little: found 0"):
        replace(options, little=0)
