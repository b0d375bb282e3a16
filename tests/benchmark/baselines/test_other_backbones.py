"""Which baselines work on which backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmark.baselines import (
    ExpertFiLM,
    FusionRanker,
    QuerySeqRec,
    RankerTask,
    RequestLoRA,
    StaticMask,
    our_masks,
)

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.evaluation.users import EvaluationUsers

pytest.importorskip("accelerate")


@pytest.fixture(params=["bert4rec", "gru4rec"])
def task(request: pytest.FixtureRequest, make_task: Callable[..., RankerTask]) -> RankerTask:
    made = make_task()
    torch.manual_seed(0)
    sizes = {"max_length": made.backbone.max_length, "hidden_size": 16}
    backbone = make_backbone(request.param, made.backbone.num_items, **sizes).eval().requires_grad_(False)
    return replace(made, backbone=backbone, options=replace(made.options, steps=2, batch_size=4))


@pytest.mark.parametrize("make", [our_masks, StaticMask, FusionRanker])
def test_these_leave_the_inside_alone(
    make: Callable[..., FusionRanker], task: RankerTask, users: EvaluationUsers
) -> None:
    ranker = make()
    ranker.fit(task)
    histories = users.item_ids[:3]
    scores = ranker.scores(histories, ["more horror", None, "no comedy"])
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[1], task.backbone(histories)[1])


@pytest.mark.parametrize("make", [ExpertFiLM, RequestLoRA, lambda: QuerySeqRec("state")])
def test_these_read_inside_sasrec(make: Callable[..., ExpertFiLM], task: RankerTask) -> None:
    with pytest.raises(ConfigError, match=r"reads the states inside SASRec, found a backbone of type (BERT|GRU)4Rec"):
        make().fit(task)
