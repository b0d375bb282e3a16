from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmark.baselines import OracleFilter, ParsedFilter, RankerTask
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.metrics import share, top_items
from cramer_peft.recsys.evaluation.tracks import Track
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import satisfies


def test_the_oracle_is_the_most_that_can_be_had(
    make_task: Callable[..., RankerTask],
    users: EvaluationUsers,
    tracks: dict[str, Track],
    score_users: Callable[..., Tensor],
) -> None:
    asked = [tracks[name].requests for name in ("truthful", "for", "against favourite")]
    catalogue, oracle = users.catalogue, OracleFilter().know(*asked)
    oracle.fit(make_task())
    for requests in asked:
        fit = satisfies(requests, catalogue.attributes, catalogue.item_attributes)
        top = top_items(score_users(oracle.scores, requests), users.seen, 5)
        most = (fit & ~users.seen).sum(1).clamp(max=5) / 5
        torch.testing.assert_close(share(top, fit), most)


def test_equal_matches_keep_the_frozen_order(make_task: Callable[..., RankerTask], users: EvaluationUsers) -> None:
    task, ranker = make_task(), ParsedFilter()
    ranker.fit(task)
    with torch.no_grad():
        frozen = task.backbone(users.item_ids[:4])
    scores = ranker.scores(users.item_ids[:4], ["I want horror"] * 4)
    horror = task.catalogue.item_attributes[:, task.catalogue.attributes.index("Horror")]
    assert bool((scores[:, horror].amin(1) > scores[:, ~horror].amax(1)).all())
    for group in (horror, ~horror):
        assert torch.equal(scores[:, group].argsort(dim=1), frozen[:, group].argsort(dim=1))


def test_what_names_nothing_changes_nothing(make_task: Callable[..., RankerTask], users: EvaluationUsers) -> None:
    task, ranker = make_task(), ParsedFilter()
    ranker.fit(task)
    with torch.no_grad():
        frozen = task.backbone(users.item_ids[:2])
    assert torch.equal(ranker.scores(users.item_ids[:2], ["surprise me", "anything is fine"]), frozen)


def test_what_the_oracle_cannot_know(make_task: Callable[..., RankerTask], users: EvaluationUsers) -> None:
    oracle = OracleFilter().know([AttributeRequest("it", ("Horror",), (), "for")])
    oracle.fit(make_task())
    with pytest.raises(DataError, match="does not know the meaning of 'else'"):
        oracle.scores(users.item_ids[:1], ["else"])
    oracle.know([AttributeRequest("it", ("Horror",), (), "for")])
    with pytest.raises(DataError, match="two meanings"):
        oracle.know([AttributeRequest("it", (), ("Horror",), "against")])
