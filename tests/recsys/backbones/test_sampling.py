"""Losses on samples of the catalogue, and the samples."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.backbones.sampling import negatives_for, sampled_softmax, with_negatives
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions, fit_backbone, train_backbone

OPTIONS = BackboneOptions(epochs=2, batch_size=8, max_length=8)
pytest.importorskip("accelerate")


def _problem(items: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = 0.3 * torch.randn(6, 4, generator=generator)
    table = torch.randn(items + 1, 4, generator=generator)
    table[0] = 100  # the padding's row must not count
    return states, table, torch.tensor([0, items - 1, 5, 5, 17, 80])


def test_it_goes_to_the_full_softmax() -> None:
    states, table, targets = _problem()
    full = functional.cross_entropy(states @ table[1:].T, targets)
    torch.manual_seed(0)
    errors = [float((sampled_softmax(states, table, targets, size) - full).abs()) for size in (100, 400_000)]
    assert errors[1] < 2e-3 < errors[0]


def test_the_sum_is_estimated_without_bias_even_from_few() -> None:
    """exp(loss + score of the target) is the estimate of the softmax's sum; a sample may well hold the target."""
    states, table, targets = _problem(12)
    states, targets = states[:1], targets[:1]
    torch.manual_seed(0)
    right = float(states[0] @ table[1])
    sums = [float((sampled_softmax(states, table, targets, 4) + right).exp()) for _ in range(3000)]
    expected = float((states @ table[1:].T).exp().sum())
    assert sum(sums) / len(sums) == pytest.approx(expected, rel=0.03)


def test_a_sample_of_nothing_but_targets_is_finite() -> None:
    states, table, _ = _problem(1)
    assert float(sampled_softmax(states[:2], table, torch.tensor([0, 0]), 3)) == 0


def _largest(name: str, items: int, negatives: int | None) -> int:
    """Elements of the largest tensor, other than a parameter, that a step keeps for its gradients."""
    model: Any = make_backbone(name, items, max_length=8, hidden_size=8)
    model.negatives = negatives
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    rows = torch.randint(1, items + 1, (4, 8))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(rows, labels=rows - 1)["loss"]
    loss.backward()
    return max(sizes)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_memory_does_not_grow_with_the_catalogue(name: str) -> None:
    small, large = (_largest(name, items, 64) for items in (10_000, 100_000))
    assert small == large < 10_000
    assert _largest(name, 10_000, None) >= 32 * 10_000  # the check sees what it is for


def test_it_is_chosen_by_size() -> None:
    assert negatives_for(19_999) is None
    assert negatives_for(20_000) == 512


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_training_on_samples_changes_the_training_alone(
    name: str, catalogue: Catalogue, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    full = train_backbone(name, catalogue, split, OPTIONS, progress=False)
    sampled = train_backbone(name, catalogue, split, OPTIONS, progress=False, negatives=5)
    assert sampled.negatives is None
    rows = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])
    assert sampled(rows).isfinite().all()
    assert not torch.equal(sampled(rows), full(rows))
    monkeypatch.setattr("cramer_peft.recsys.backbones.sampling.FULL_SOFTMAX_ITEMS", 40)
    monkeypatch.setattr("cramer_peft.recsys.backbones.sampling.DEFAULT_NEGATIVES", 5)
    chosen = train_backbone(name, catalogue, split, OPTIONS, progress=False)
    assert torch.equal(chosen(rows), sampled(rows))


@pytest.mark.parametrize(("name", "negatives"), [("sasrec", 0), ("bert4rec", 5)])
def test_what_cannot_be_sampled_is_refused(name: str, negatives: int, split: Split) -> None:
    model = make_backbone(name, 40, max_length=8, hidden_size=8)
    with pytest.raises(ConfigError, match="negatives: found"):
        fit_backbone(model, split, OPTIONS, progress=False, negatives=negatives)


def test_a_sample_is_the_targets_and_others() -> None:
    targets = torch.tensor([7, 3, 7, 29])
    items, added = with_negatives(targets, 30, 9, random.Random(0))
    assert items[:3].tolist() == [3, 7, 29]
    assert len(set(items.tolist())) == len(items) == 12
    assert 0 <= int(items.min()) <= int(items.max()) < 30
    torch.testing.assert_close(added.exp(), torch.tensor([1.0] * 3 + [27 / 9] * 9))


@pytest.mark.parametrize("negatives", [27, 1000])
def test_a_large_sample_is_the_catalogue(negatives: int) -> None:
    items, added = with_negatives(torch.tensor([7, 3, 29]), 30, negatives, random.Random(0))
    assert sorted(items.tolist()) == list(range(30))
    assert not added.any()


def test_targets_may_be_all_there_is_or_nothing() -> None:
    items, added = with_negatives(torch.arange(4), 4, 5, random.Random(0))
    assert items.tolist() == [0, 1, 2, 3]
    assert not added.any()
    items, added = with_negatives(torch.empty(0, dtype=torch.long), 8, 2, random.Random(0))
    assert len(items) == 2
    torch.testing.assert_close(added.exp(), torch.full((2,), 4.0))


def test_others_are_drawn_evenly_and_the_sum_is_estimated_without_bias() -> None:
    rng = random.Random(0)
    scores = torch.randn(20, generator=torch.Generator().manual_seed(0))
    counts, total = torch.zeros(20), 0.0
    for _ in range(4000):
        items, added = with_negatives(torch.tensor([2, 11]), 20, 6, rng)
        counts[items] += 1
        total += float((scores[items] + added).exp().sum())
    assert counts[[2, 11]].tolist() == [4000, 4000]
    others = torch.cat([counts[:2], counts[3:11], counts[12:]])
    torch.testing.assert_close(others / 4000, torch.full((18,), 6 / 18), atol=0.04, rtol=0)
    assert total / 4000 == pytest.approx(float(scores.exp().sum()), rel=0.02)
