from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from benchmark.transfer import (
    ItemAlignment,
    TransferOptions,
    adapt_backbone,
    align_items,
    carry_masks,
    item_table,
    measure_transfer,
    run_transfer,
    shared_attributes,
    target_encoder,
    transfer_rankers,
    transfer_scorers,
    transfer_tracks,
)
from torch import Tensor

from cramer_peft import HashingEncoder, RequestMaskConfig, inject_request_masks
from cramer_peft.errors import BaseModelMismatchError, DataError, EncoderError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.text_encoders import request_encoder, without_cache
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import BackboneOptions, GeneratorOptions

pytest.importorskip("accelerate")

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


QUICK = BackboneOptions(epochs=2, learning_rate=5e-3, batch_size=8, patience=2)


def test_items_are_put_beside_those_with_the_same_attributes(
    alignment: ItemAlignment, sasrec: SASRec, catalogue: Catalogue
) -> None:
    known = item_table(sasrec)
    means = torch.stack([known[catalogue.item_attributes[:, catalogue.attributes.index(k)]].mean(0) for k in KINDS[:2]])
    distances = torch.cdist(alignment.embeddings[3:], means)
    kinds = torch.arange(3, GAMES) % 3
    assert (distances[kinds == 0].argmin(1) == 0).all()
    assert (distances[kinds == 1].argmin(1) == 1).all()
    assert alignment.explained > 0.05


def test_the_same_item_keeps_its_embedding(
    alignment: ItemAlignment, sasrec: SASRec, catalogue: Catalogue, split: Split, games: Catalogue, text: HashingEncoder
) -> None:
    assert alignment.copied.nonzero().flatten().tolist() == [0]
    assert torch.equal(alignment.embeddings[0], item_table(sasrec)[catalogue.find_title("Action tale 4")])
    apart = align_items(sasrec, catalogue, split, games, text, same_items=False)
    assert not apart.copied.any()
    assert torch.equal(apart.embeddings[1:], alignment.embeddings[1:])


def test_a_backbone_for_other_items_is_refused(
    make_sasrec: Callable[..., SASRec], catalogue: Catalogue, split: Split, games: Catalogue, text: HashingEncoder
) -> None:
    with pytest.raises(DataError, match="knows 7 items"):
        align_items(make_sasrec(num_items=7), catalogue, split, games, text)


def test_only_the_items_are_learned(sasrec: SASRec, alignment: ItemAlignment, played: Split) -> None:
    before = {name: tensor.clone() for name, tensor in sasrec.state_dict().items()}
    target = adapt_backbone(sasrec, alignment, played, QUICK)
    after = target.state_dict()
    table = "bert.embeddings.word_embeddings.weight"
    assert set(after) == set(before)
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert table in changed
    assert all(torch.equal(after[name], after[table]) for name in changed)  # tied to it, where there are others
    assert not torch.equal(item_table(target), alignment.embeddings)
    assert torch.equal(after[table][0], before[table][0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in sasrec.state_dict().items())
    assert (target.num_items, target.max_length, target.training) == (GAMES, LENGTH, False)
    assert type(target) is SASRec


def test_items_can_be_held_where_they_were_put(sasrec: SASRec, alignment: ItemAlignment, played: Split) -> None:
    moved = [
        float((item_table(adapt_backbone(sasrec, alignment, played, QUICK, pull)) - alignment.embeddings).norm())
        for pull in (0.0, 1e4)
    ]
    assert moved[1] < 0.7 * moved[0]


def test_an_alignment_of_other_items_is_refused(sasrec: SASRec, alignment: ItemAlignment, played: Split) -> None:
    short = replace(alignment, embeddings=alignment.embeddings[:5])
    with pytest.raises(DataError, match="found 5 aligned items"):
        adapt_backbone(sasrec, short, played, QUICK)
    with pytest.raises(DataError, match="pull=-1"):
        adapt_backbone(sasrec, alignment, played, QUICK, pull=-1)


def test_masks_are_carried_only_where_the_weights_are_the_same(
    sasrec: SASRec,
    alignment: ItemAlignment,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
    make_sasrec: Callable[..., SASRec],
) -> None:
    target = adapt_backbone(sasrec, alignment, played, QUICK)
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


def test_which_attributes_are_shared(catalogue: Catalogue, games: Catalogue) -> None:
    assert shared_attributes(catalogue, games) == (("Action", "Comedy"), ("Puzzle",))


def test_little_training_starts_from_the_source_and_scratch_does_not(
    sasrec: SASRec,
    alignment: ItemAlignment,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
) -> None:
    target = adapt_backbone(sasrec, alignment, played, QUICK)
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
    scores = transfer_scorers(rankers)["zero-shot"](torch.tensor([[1, 2, 0, 0, 0, 0, 0, 0]]), ["a comedy"])
    assert scores.shape == (1, GAMES)


class Knows:
    """A scorer that reads the kind in the request, for or against it being all one to it."""

    def __init__(self, games: Catalogue) -> None:
        self._games = games

    def __call__(self, item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores = torch.arange(GAMES, 0, -1).float().expand(len(item_ids), -1).clone()
        for row, text in enumerate(requests):
            for column, name in enumerate(KINDS):
                if name.lower() in (text or "").lower():
                    scores[row] += 100 * self._games.item_attributes[:, column]
        return scores


def test_what_is_measured(catalogue: Catalogue, games: Catalogue, played: Split) -> None:
    users = EvaluationUsers.of(games, played, "validation", LENGTH)
    tracks = transfer_tracks(users, catalogue, TRAIN_TEMPLATES, seed=0)
    assert list(tracks) == ["truthful", "for", "against", "for, shared", "for, new"]
    assert {request.wanted for request in tracks["for, new"].requests} == {("Puzzle",)}
    assert {name for request in tracks["for, shared"].requests for name in request.wanted} == {"Action", "Comedy"}
    scorer = Knows(games)

    def deaf_scorer(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        return scorer(item_ids, [None] * len(item_ids))

    found = measure_transfer({"knows": scorer, "deaf": deaf_scorer}, deaf_scorer, users, tracks, k=3)
    json.dumps(found)
    frozen, knows, deaf = (found["tracks"][name] for name in ("frozen", "knows", "deaf"))
    assert knows["for, new"]["satisfaction"]["value"] == 1
    assert knows["for, new"]["normalised_gain"]["value"] == pytest.approx(1)
    assert knows["for"]["retention"]["value"] == pytest.approx(1)  # it orders what satisfies as before
    assert knows["against"]["violation"]["value"] > frozen["against"]["violation"]["value"]
    assert deaf == frozen
    assert frozen["for"]["normalised_gain"]["value"] == 0
    assert found["differences"]["knows - frozen"]["truthful"]["low"] > 0
    assert found["differences"]["deaf - frozen"]["for"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert set(knows["truthful"]) == {"ndcg", "hr", "mrr"}


def test_requests_are_read_in_terms_of_the_catalogue_that_is_ranked(
    sasrec: SASRec,
    catalogue: Catalogue,
    alignment: ItemAlignment,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
) -> None:
    pytest.importorskip("wordllama")
    target = adapt_backbone(sasrec, alignment, played, QUICK)
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
    with pytest.raises(EncoderError, match="made from a catalogue"):
        carry_masks(masks, target).encode(["a comedy"])


def test_all_of_it(
    sasrec: SASRec,
    catalogue: Catalogue,
    split: Split,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
) -> None:
    plain = copy.deepcopy(sasrec)
    made = inject_request_masks(sasrec, hashing(init_weights=False))
    masks = carry_masks(made, copy.deepcopy(plain))  # loaded, and so not to be trained itself
    options = TransferOptions(GeneratorOptions(steps=2, batch_size=8), little=0.5)
    found = run_transfer(
        masks, (plain, catalogue, split), (games, played), TRAIN_TEMPLATES, options, backbone=QUICK, same_items=False
    )
    assert (found["stage"], found["users"], found["shared"]) == ("validation", 30, ["Action", "Comedy"])
    assert found["alignment"]["copied"] == 0
    assert list(found["tracks"]) == ["frozen", "zero-shot", "little training", "scratch"]
    json.dumps(found)
    with pytest.raises(DataError, match="unload its masks first"):
        run_transfer(masks, (sasrec, catalogue, split), (games, played), TRAIN_TEMPLATES, options)
