"""Users are scored in batches: how many at a time changes no figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.split import Split, seen_mask
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Tracks, evaluate
from cramer_peft.recsys.evaluation.metrics import ndcg, target_ranks
from cramer_peft.recsys.training.generator_training import HistoryWindows, score_histories


def test_metrics_do_not_depend_on_the_batch(
    make_sasrec: Callable[..., SASRec], users: EvaluationUsers, tracks: Tracks, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = make_sasrec(), []

    def scorer(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        sizes.append(len(item_ids))
        scores: Tensor = model(item_ids)
        return scores + torch.tensor([float(len(text or "") % 3) for text in texts])[:, None]

    frozen = users.score(scorer, None)
    whole = evaluate(scorer, users, tracks, frozen)
    assert set(sizes) == {30}  # in one piece
    monkeypatch.setattr("cramer_peft.recsys.evaluation.evaluation._BATCH", 7)
    assert torch.allclose(users.score(scorer, None), frozen, atol=1e-6)
    assert evaluate(scorer, users, tracks, frozen) == whole
    assert max(sizes[-20:]) == 7


def test_validation_in_training_does_not_depend_on_the_batch(
    make_sasrec: Callable[..., SASRec], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    from cramer_peft.recsys.training.generator_training import _BackboneTrainer

    trainer = _BackboneTrainer(
        model=make_sasrec(),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        train_dataset=HistoryWindows(split.train, 8),
        split=split,
    )
    scores = score_histories(trainer.model, trainer._item_ids)
    seen = seen_mask(split.history("validation"), scores.shape[1])
    expected = float(ndcg(target_ranks(scores.masked_fill(seen, -torch.inf), split.validation_target)).mean())
    for size in (256, 7, 1):
        monkeypatch.setattr("cramer_peft.recsys.training.generator_training._SCORING_BATCH", size)
        assert trainer.evaluate()["eval_ndcg@10"] == expected
