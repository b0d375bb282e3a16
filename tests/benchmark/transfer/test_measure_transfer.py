from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence

import pytest
import torch
from benchmark.measures.measure import Setting
from benchmark.transfer.generators import TransferOptions, carry_masks
from benchmark.transfer.measure_transfer import (
    compare_transfer,
    measure_transfer,
    run_transfer,
    shared_attributes,
    transfer_tracks,
)
from torch import Tensor

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")

KINDS = ("Action", "Comedy", "Puzzle")  # the source knows the first two

GAMES, LENGTH = 24, 8


def test_which_attributes_are_shared(catalogue: Catalogue, games: Catalogue) -> None:
    assert shared_attributes(catalogue, games) == (("Action", "Comedy"), ("Puzzle",))


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
    setting = Setting(games, played.history("validation"), played.validation_target, LENGTH, seed=0, k=3)
    tracks = transfer_tracks(games, played.validation_target, catalogue, TRAIN_TEMPLATES, seed=0)
    assert list(tracks) == ["truthful", "for", "against", "for, shared", "for, new"]
    assert {request.wanted for request in tracks["for, new"].requests} == {("Puzzle",)}
    assert {name for request in tracks["for, shared"].requests for name in request.wanted} == {"Action", "Comedy"}
    scorer = Knows(games)

    def deaf_scorer(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        return scorer(item_ids, [None] * len(item_ids))

    values = measure_transfer({"knows": scorer, "deaf": deaf_scorer}, deaf_scorer, setting, tracks)
    found = compare_transfer(values, ["knows", "deaf"])
    json.dumps(found)
    frozen, knows, deaf = (found["tracks"][name] for name in ("frozen", "knows", "deaf"))
    assert knows["for, new"]["satisfaction"]["value"] == 1
    assert knows["for, new"]["normalised_gain"]["value"] == pytest.approx(1)
    assert knows["for"]["retention"]["value"] == pytest.approx(1)  # it orders what satisfies as before
    assert knows["against"]["violation"]["value"] > frozen["against"]["violation"]["value"]
    assert frozen.keys() == deaf.keys()
    assert all(deaf[track][metric] == found for track, metrics in frozen.items() for metric, found in metrics.items())
    assert deaf["for"]["normalised_gain"]["value"] == 0
    assert found["differences"]["knows - frozen"]["truthful"]["low"] > 0
    assert found["differences"]["deaf - frozen"]["for"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert set(knows["truthful"]) >= {"ndcg", "hr", "mrr"}


def test_all_of_it(
    sasrec: SASRec,
    catalogue: Catalogue,
    split: Split,
    games: Catalogue,
    played: Split,
    hashing: Callable[..., RequestMaskConfig],
    quick: BackboneOptions,
) -> None:
    plain = copy.deepcopy(sasrec)
    made = inject_request_masks(sasrec, hashing(init_weights=False))
    masks = carry_masks(made, copy.deepcopy(plain))  # loaded, and so not to be trained itself
    options = TransferOptions(GeneratorOptions(steps=2, batch_size=8), little=0.5)
    found = run_transfer(
        masks, (plain, catalogue, split), (games, played), TRAIN_TEMPLATES, options, backbone=quick, same_items=False
    )
    assert (found["stage"], found["users"], found["shared"]) == ("validation", 30, ["Action", "Comedy"])
    assert found["alignment"]["copied"] == 0
    assert list(found["tracks"]) == ["frozen", "zero-shot", "little training", "scratch"]
    json.dumps(found)
    with pytest.raises(DataError, match="unload its masks first"):
        run_transfer(masks, (sasrec, catalogue, split), (games, played), TRAIN_TEMPLATES, options)
