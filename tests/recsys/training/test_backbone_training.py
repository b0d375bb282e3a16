from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig
from cramer_peft.recsys.backbones import (
    BACKBONES,
    SASRec,
    make_backbone,
)
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import HistoryWindows, pad_histories, seen_mask
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.metrics import ndcg, target_ranks
from cramer_peft.recsys.evaluation.users import EvaluationUsers, score_histories
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.training.backbone_training import (
    BackboneOptions,
    fit_backbone,
    train_backbone,
)
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")


def validation_ndcg(model: SASRec, catalogue: Catalogue, split: Split) -> float:
    users = EvaluationUsers.of(catalogue, split, "validation", model.max_length)
    scores = score_histories(model, users.item_ids).masked_fill(users.seen, -torch.inf)
    return float(ndcg(target_ranks(scores, users.targets)).mean())


def test_training_a_backbone(
    data: tuple[Catalogue, Split], sasrec: SASRec, sasrec_options: BackboneOptions, make_sasrec: Callable[..., SASRec]
) -> None:
    untrained = validation_ndcg(make_sasrec(hidden_size=64), *data)
    assert validation_ndcg(sasrec, *data) > untrained + 0.08
    torch.manual_seed(123)
    again = train_backbone("sasrec", *data, sasrec_options, seed=0, progress=False)
    assert all(torch.equal(value, sasrec.state_dict()[name]) for name, value in again.state_dict().items())
    assert not any(module.training for module in again.modules())
    assert all(parameter.device.type == "cpu" for parameter in again.parameters())


def test_the_epoch_that_validates_best_is_returned(
    data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cramer_peft.recsys.training.backbone_training import _BackboneTrainer

    seen: list[tuple[float, dict[str, Tensor]]] = []
    evaluate_once = _BackboneTrainer.evaluate

    def record(self: _BackboneTrainer, *args: object, **kwargs: object) -> dict[str, float]:
        metrics = evaluate_once(self, *args, **kwargs)
        seen.append((metrics["eval_ndcg@10"], {n: v.clone() for n, v in self.model.state_dict().items()}))
        return metrics

    monkeypatch.setattr(_BackboneTrainer, "evaluate", record)
    options = BackboneOptions(epochs=4, learning_rate=0.1, batch_size=8, patience=1, max_length=8)
    model = train_backbone("sasrec", *data, options, seed=1, progress=False)
    best = max(value for value, _ in seen)
    state = next(state for value, state in seen if value == best)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    values = [value for value, _ in seen]
    assert len(values) == 4 or values[-1] <= max(values[:-1])  # stopped early only without an improvement


def test_another_seed_gives_another_backbone(data: tuple[Catalogue, Split]) -> None:
    options = BackboneOptions(epochs=1, max_length=8)
    first, second = (train_backbone("sasrec", *data, options, seed=seed, progress=False) for seed in (1, 2))
    assert not torch.equal(first.bert.embeddings.word_embeddings.weight, second.bert.embeddings.word_embeddings.weight)


def test_the_test_targets_are_not_looked_at(data: tuple[Catalogue, Split]) -> None:
    catalogue, split = data
    blinded = replace(split, test_target=torch.full_like(split.test_target, -7))
    options = BackboneOptions(epochs=1, max_length=8)
    first, second = (train_backbone("sasrec", catalogue, part, options, progress=False) for part in (split, blinded))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_validation_in_training_does_not_depend_on_the_batch(
    make_sasrec: Callable[..., SASRec], split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    from transformers import TrainingArguments

    from cramer_peft.recsys.training.backbone_training import _BackboneTrainer

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
        monkeypatch.setattr("cramer_peft.recsys.training.backbone_training.BATCH", size)
        assert trainer.evaluate()["eval_ndcg@10"] == expected
    monkeypatch.setattr("cramer_peft.recsys.evaluation.batches.CELLS", 3 * scores.shape[1])
    assert trainer.evaluate()["eval_ndcg@10"] == expected


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_training(
    name: str,
    catalogue: Catalogue,
    split: Split,
    two_epochs: BackboneOptions,
    hashing: Callable[..., RequestMaskConfig],
    make_untrained: Callable[[str], Any],
) -> None:
    pytest.importorskip("accelerate")
    make_untrained(name)  # skips
    model = train_backbone(name, catalogue, split, two_epochs, seed=1, progress=False)
    again = train_backbone(name, catalogue, split, two_epochs, seed=1, progress=False)
    histories = pad_histories(split.history("test"), two_epochs.max_length)
    scores = score_histories(model, histories)
    assert torch.equal(scores, score_histories(again, histories))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    masks = mask_backbone(model, catalogue, hashing())
    train_generator(masks, catalogue, split, GeneratorOptions(steps=3, batch_size=4), progress=False)
    with torch.no_grad():
        assert torch.equal(masks(histories, request=None), scores)
        assert not torch.equal(masks(histories, request="more horror"), scores)


def test_a_backbone_is_made_seeded_and_fitted(catalogue: Catalogue, split: Split, two_epochs: BackboneOptions) -> None:
    pytest.importorskip("accelerate")
    one = train_backbone("sasrec", catalogue, split, two_epochs, progress=False).state_dict()
    torch.manual_seed(0)
    model = SASRec(SASRec.configure(len(catalogue), two_epochs.max_length, two_epochs.dropout))
    fit_backbone(model, split, two_epochs, progress=False)
    other = model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", ["bert4rec", "gru4rec"])
def test_training_learns(name: str, catalogue: Catalogue, split: Split) -> None:
    pytest.importorskip("accelerate")
    windows = HistoryWindows(split.train, 8)
    options = BackboneOptions(epochs=25, learning_rate=5e-3, batch_size=8, patience=25, max_length=8)

    def loss(model: Any) -> float:
        with torch.no_grad():
            return float(model(windows.item_ids, labels=windows.labels)["loss"])

    untrained = make_backbone(name, len(catalogue), max_length=8).eval()
    assert loss(train_backbone(name, catalogue, split, options, progress=False)) < 0.9 * loss(untrained)
