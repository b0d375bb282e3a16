from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from benchmark.measures.measure import Setting
from benchmark.measures.summary import summarise
from benchmark.transfer.measure_transfer import (
    frozen_values,
    measure_transfer,
    paired_difference,
    shared_attributes,
    transfer_tracks,
    values_of,
)
from torch import Tensor

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES

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
    tracks = transfer_tracks(setting, catalogue, TRAIN_TEMPLATES)
    assert list(tracks) == ["truthful", "for", "against", "against favourite", "empty", "for, shared", "for, new"]
    assert {request.wanted for request in tracks["for, new"].requests} == {("Puzzle",)}
    assert {name for request in tracks["for, shared"].requests for name in request.wanted} == {"Action", "Comedy"}
    scorer = Knows(games)

    def deaf_scorer(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        return scorer(item_ids, [None] * len(item_ids))

    values = measure_transfer({"knows": scorer, "deaf": deaf_scorer}, deaf_scorer, setting, tracks)
    knows, deaf = (summarise(values_of(values, name)) for name in ("knows", "deaf"))
    assert knows["for, new"]["satisfaction"]["value"] == 1
    assert knows["for, new"]["normalised_gain"]["value"] == pytest.approx(1)
    assert knows["for"]["retention"]["value"] == pytest.approx(1)  # it orders what satisfies as before
    assert knows["against"]["violation"]["value"] > deaf["against"]["violation"]["value"]
    assert (deaf["for"]["normalised_gain"]["value"], deaf["against favourite"]["ratio"]["value"]) == (0, 1)
    before = frozen_values(values_of(values, "knows"))
    assert all(torch.equal(values[f"deaf: {key}"].nan_to_num(), value.nan_to_num()) for key, value in before.items())
    lead = paired_difference(values["knows: truthful/ndcg"], before["truthful/ndcg"])
    assert lead.low > 0
