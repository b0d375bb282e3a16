"""The generalised binary cross-entropy of backbones: its formula, what it goes to, how it is asked for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.backbones.sampling import chance_logit, gbce, gbce_beta, sampled_loss, sampled_softmax
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import BackboneOptions, fit_backbone, train_backbone

OPTIONS = BackboneOptions(epochs=2, batch_size=8, max_length=8, loss="gbce")


@given(st.integers(1, 600), st.integers(2, 10_000), st.floats(0, 1))
def test_beta_is_that_of_the_paper(negatives: int, others: int, t: float) -> None:
    negatives = min(negatives, others)
    alpha = negatives / others
    expected = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    assert gbce_beta(negatives, others + 1, t) == pytest.approx(expected, rel=1e-9)


def test_beta_at_its_ends() -> None:
    assert gbce_beta(256, 10_001, 0) == 1
    assert gbce_beta(256, 10_001, 1) == pytest.approx(0.0256)
    assert gbce_beta(10_000, 10_001, 0.75) == 1  # with all negatives there is nothing to correct
    assert gbce_beta(512, 40, 0.75) == 1
    assert gbce_beta(5, 1, 0.75) == 1


def _drawn(items: int, negatives: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(items, (negatives,))


def test_without_calibration_it_is_binary_cross_entropy_with_the_same_negatives() -> None:
    generator = torch.Generator().manual_seed(1)
    states, table = torch.randn(5, 4, generator=generator), torch.randn(31, 4, generator=generator)
    drawn = _drawn(30, 7)
    targets = torch.tensor([0, 29, 5, 5, int(drawn[3])])  # the last is among the negatives
    torch.manual_seed(0)
    found = gbce(states, table, targets, 7, calibration=0.0)
    total = 0.0
    for state, target in zip(states, targets.tolist(), strict=True):
        wrong = [item for item in drawn.tolist() if item != target]
        scores = table[1:][[target, *wrong]] @ state + chance_logit(30)
        wanted = torch.tensor([1.0] + [0.0] * len(wrong))
        total += float(functional.binary_cross_entropy_with_logits(scores, wanted, reduction="sum")) / 8
    assert float(found) == pytest.approx(total / 5, rel=1e-5)


def test_the_target_alone_is_weighed_by_beta() -> None:
    generator = torch.Generator().manual_seed(1)
    states, table = torch.randn(5, 4, generator=generator), torch.randn(31, 4, generator=generator)
    targets = torch.tensor([0, 29, 5, 5, 8])
    losses = []
    for t in (0.0, 0.6):
        torch.manual_seed(0)
        losses.append(float(gbce(states, table, targets, 7, t)))
    right = functional.logsigmoid((states * table[targets + 1]).sum(1) + chance_logit(30)).mean()
    beta = gbce_beta(7, 30, 0.6)
    assert losses[0] - losses[1] == pytest.approx(float(-(1 - beta) * right / 8), rel=1e-4)


@pytest.mark.parametrize(("t", "calibrated"), [(1.0, True), (0.0, False)])
def test_fully_calibrated_probabilities_go_to_the_softmax_s(t: float, calibrated: bool) -> None:
    """Free scores of 20 items, found from a known distribution: one state of width 1 against the table."""
    items, negatives = 20, 5
    counts = torch.tensor([100, 50, 20, 10, 4] + [1] * 15)
    targets = torch.arange(items).repeat_interleave(counts)
    probabilities = counts / counts.sum()
    table = torch.zeros(items + 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    torch.manual_seed(0)
    for _ in range(600):
        optimizer.zero_grad()
        gbce(torch.ones(len(targets), 1), table, targets, negatives, t).backward()
        optimizer.step()
        schedule.step()
    found = (table.detach()[1:, 0] + chance_logit(items)).sigmoid()
    rate = negatives / (items - 1)
    expected = probabilities if calibrated else probabilities / (probabilities + rate * (1 - probabilities))
    assert torch.allclose(found, expected, rtol=0.2, atol=0.01)
    assert (float(found.sum()) < 1.15) is calibrated  # plain binary cross-entropy overrates everything


@pytest.mark.parametrize("items", [2, 30, 10_000])
def test_a_model_that_knows_nothing_starts_at_chance(items: int) -> None:
    assert torch.tensor(chance_logit(items)).sigmoid().item() == pytest.approx(1 / items)
    table = torch.zeros(items + 1, 4, requires_grad=True)
    states = torch.ones(50, 4)
    torch.manual_seed(0)
    gbce(states, table, torch.zeros(50, dtype=torch.long), 5, 0.0).backward()
    gradient = table.grad[1:].abs().sum(1)
    assert gradient[1:].sum() <= 5 / (items - 1) * gradient[0] * 1.01  # no burst that pushes all others down


def test_which_loss_on_samples() -> None:
    states, table, targets = torch.randn(3, 4), torch.randn(11, 4), torch.tensor([1, 2, 3])
    for calibration in (None, 0.5):
        torch.manual_seed(0)
        found = sampled_loss(states, table, targets, 4, calibration)
        torch.manual_seed(0)
        expected = (
            sampled_softmax(states, table, targets, 4)
            if calibration is None
            else gbce(states, table, targets, 4, calibration)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_training_by_it_lowers_it(name: str, catalogue: Catalogue, split: Split) -> None:
    pytest.importorskip("accelerate")
    trained = train_backbone(name, catalogue, split, OPTIONS, progress=False, negatives=10)
    assert trained.negatives is None
    assert trained.calibration is None
    torch.manual_seed(0)
    fresh = make_backbone(name, len(catalogue), max_length=8)
    rows = torch.stack([history[:6] for history in split.train if len(history) >= 6]) + 1
    losses = []
    for model in (fresh, trained):
        model.eval()
        model.negatives, model.calibration = 10, OPTIONS.calibration
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(float(model(rows[:, :-1], labels=rows[:, 1:] - 1)["loss"]))
        model.negatives, model.calibration = None, None
    assert losses[1] < losses[0]
    assert trained(rows).isfinite().all()


def test_it_is_a_loss_of_its_own_at_every_size(catalogue: Catalogue, split: Split) -> None:
    pytest.importorskip("accelerate")
    rows = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]])
    full = train_backbone("sasrec", catalogue, split, OPTIONS, progress=False)
    same = train_backbone("sasrec", catalogue, split, OPTIONS, progress=False, negatives=512)
    other = train_backbone("sasrec", catalogue, split, dataclasses.replace(OPTIONS, loss="softmax"), progress=False)
    assert torch.equal(full(rows), same(rows))
    assert not torch.equal(full(rows), other(rows))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sasrec", {"loss": "bpr"}, "loss: found 'bpr'"),
        ("sasrec", {"calibration": 1.5}, "calibration=1.5"),
        ("bert4rec", {}, "'gbce' for BERT4Rec"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(name: str, change: dict[str, object], message: str, split: Split) -> None:
    model = make_backbone(name, 40, max_length=8, hidden_size=8)
    with pytest.raises(ConfigError, match=message):
        fit_backbone(model, split, dataclasses.replace(OPTIONS, **change), progress=False)  # type: ignore[arg-type]
