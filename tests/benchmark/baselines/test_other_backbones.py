"""Which baselines work on which backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from benchmark.baselines import (
    LLMESR,
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


@pytest.mark.parametrize(
    "make", [ExpertFiLM, RequestLoRA, LLMESR, lambda: QuerySeqRec("state"), lambda: QuerySeqRec("token")]
)
def test_these_read_inside_bert4rec_too(
    make: Callable[..., ExpertFiLM], task: RankerTask, users: EvaluationUsers
) -> None:
    ranker, histories = make(), users.item_ids[:3]
    if task.backbone.name == "gru4rec":
        with pytest.raises(
            ConfigError, match="reads the states inside SASRec or BERT4Rec, found a backbone of type GRU"
        ):
            ranker.fit(task)
        return
    ranker.fit(task)
    assert ranker.trainable > 0
    scores = ranker.scores(histories, ["more horror", None, "no comedy"])
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[1], task.backbone(histories)[1])
    assert not torch.equal(scores[0], task.backbone(histories)[0])
    learner, vectors = ranker.learner, task.encoder.encode(["more horror", "no drama", "no comedy"])
    assert learner is not None
    with torch.no_grad():
        along = learner(histories, vectors, torch.tensor([[1, 3]] * 3))
        for place, length in enumerate((2, 4)):  # after each position as after a history that ends there
            alone = learner(histories[:, :length], vectors)
            assert torch.allclose(along[:, place], alone, atol=1e-5)
