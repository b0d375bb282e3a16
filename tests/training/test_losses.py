import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.mask_state import MaskState
from cramer_peft.training import SparsityLoss, minimal_edit_loss

seeds = st.integers(0, 2**31)
kappas = st.floats(0.1, 20)


def random_case(seed: int, rows: int = 3, items: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frozen = 2 * torch.randn(rows, items, generator=generator, dtype=torch.float64)
    match = torch.randint(-2, 3, (rows, items), generator=generator).double() / 2
    return frozen, match


# --- minimal_edit_loss


def test_by_hand() -> None:
    # p_frozen = (1/2, 1/4, 1/4); with kappa = ln 2 a match of 1 doubles: p* = (2, 2, 1)/5 of (.5, .5, .25)
    frozen = torch.tensor([[0.5, 0.25, 0.25]]).log()
    match = torch.tensor([[0.0, 1.0, 0.0]])
    wanted = torch.tensor([0.4, 0.4, 0.2])
    scores = torch.tensor([[math.log(0.6), math.log(0.1), math.log(0.3)]]) + 5  # a shift changes nothing
    expected = sum(p * math.log(p / q) for p, q in zip(wanted.tolist(), (0.6, 0.1, 0.3), strict=True))
    loss = minimal_edit_loss(scores, frozen, match, kappa=math.log(2))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_rows_are_averaged() -> None:
    frozen, match = random_case(0)
    scores = torch.zeros_like(frozen)
    rows = [minimal_edit_loss(scores[i : i + 1], frozen[i : i + 1], match[i : i + 1]) for i in range(len(frozen))]
    torch.testing.assert_close(minimal_edit_loss(scores, frozen, match), torch.stack(rows).mean())


@given(seeds, kappas)
def test_zero_at_the_wanted_distribution_and_nowhere_else(seed: int, kappa: float) -> None:
    frozen, match = random_case(seed)
    wanted = frozen + kappa * match
    assert minimal_edit_loss(wanted, frozen, match, kappa).item() == pytest.approx(0, abs=1e-9)
    other = wanted.clone()
    other[:, 0] += 0.5
    assert minimal_edit_loss(other, frozen, match, kappa) > 0


@given(seeds, kappas)
def test_the_wanted_distribution_maximises_match_at_the_cost_of_change(seed: int, kappa: float) -> None:
    frozen, match = (tensor[0] for tensor in random_case(seed, rows=1))
    log_frozen = frozen.log_softmax(-1)

    def value(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return (log_p.exp() * match).sum(-1) - (log_p.exp() * (log_p - log_frozen)).sum(-1) / kappa

    best = frozen + kappa * match
    noise = torch.randn(50, len(best), generator=torch.Generator().manual_seed(seed), dtype=best.dtype)
    for size in (0.01, 0.3, 5.0):
        assert bool((value(best + size * noise) <= value(best) + 1e-9).all())


@given(seeds, st.floats(-1, 1))
def test_a_constant_match_asks_for_no_change(seed: int, constant: float) -> None:
    frozen, match = random_case(seed)
    scores = frozen.clone().requires_grad_()
    loss = minimal_edit_loss(scores, frozen, torch.full_like(match, constant))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert gradient.abs().max() < 1e-9


def test_the_gradient_pulls_there_and_leaves_the_frozen_scores_alone() -> None:
    frozen, match = random_case(1)
    frozen.requires_grad_()
    scores = nn.Parameter(frozen.detach().clone())
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = minimal_edit_loss(scores, frozen, match, kappa=3.0)
        loss.backward()
        return loss

    start = closure()
    optimiser.step(closure)
    assert start > 0.1
    assert frozen.grad is None
    wanted = (frozen.detach() + 3.0 * match).softmax(-1)
    torch.testing.assert_close(scores.detach().softmax(-1), wanted, atol=1e-4, rtol=0)


def test_a_floor_measures_what_is_left_of_the_edit_that_was_needed() -> None:
    frozen, match = random_case(2)
    match[2] = 0  # this row needs no edit
    scores = torch.randn(frozen.shape, dtype=frozen.dtype)
    expected = []
    for row in range(3):
        plain, needed = (
            minimal_edit_loss(given[row : row + 1], frozen[row : row + 1], match[row : row + 1], kappa=2.0)
            for given in (scores, frozen)
        )
        assert bool(needed > 0.01) == (row < 2)
        expected.append(plain / (needed + 0.25))
    found = minimal_edit_loss(scores, frozen, match, kappa=2.0, floor=0.25)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    assert minimal_edit_loss(frozen[:2], frozen[:2], match[:2], kappa=2.0, floor=1e-9).item() == pytest.approx(1)


# --- SparsityLoss


def state_of(*logits: Tensor) -> MaskState:
    """A state of one layer, its logits in two parts, rows of requests."""
    tensors = {"layer": dict(zip(("row_logits", "column_logits"), logits, strict=True))}
    rows = len(logits[0])
    return MaskState(tensors, torch.ones(rows, dtype=torch.bool), torch.ones(rows), "topk")


def test_sparsity_is_zero_where_each_gate_is_open_at_the_kept_share() -> None:
    # d = 10 and drop_ratio .25: k = ceil(7.5) = 8
    logit = math.log(0.8 / 0.2)
    loss = SparsityLoss(0.25)(state_of(torch.full((2, 4), logit), torch.full((2, 6), logit)))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_sparsity_by_hand() -> None:
    # d = 2, drop_ratio .5: target .5; pi = .75 and .5: KL = .75 ln 1.5 + .25 ln .5 and 0
    loss = SparsityLoss(0.5)(state_of(torch.tensor([[math.log(3)]]), torch.tensor([[0.0]])))
    assert loss.item() == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, abs=1e-6)


def test_sparsity_counts_the_kept_gates_as_the_gate_does() -> None:
    # .95 * 20 is a little above 19 in floating point; k is 19 all the same
    logit = math.log(0.95 / 0.05)
    assert SparsityLoss(0.05)(state_of(torch.full((1, 12), logit), torch.full((1, 8), logit))).item() < 1e-6


@given(seeds, st.sampled_from([0.0, 0.1, 0.5]))
def test_sparsity_is_positive_elsewhere_and_finite_everywhere(seed: int, drop_ratio: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [100 * torch.rand(2, n, generator=generator) - 50 for n in (3, 5)]
    for part in logits:
        part.requires_grad_()
    loss = SparsityLoss(drop_ratio)(state_of(*logits))
    loss.backward()
    assert loss > 0
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(part.grad).all()) for part in logits if part.grad is not None)


def test_sparsity_trains_the_generator(model: nn.Module, make_config: Callable[..., RequestMaskConfig]) -> None:
    masks = inject_request_masks(model, make_config("topk"))
    loss = SparsityLoss(0.1)(masks.mask_state(["more horror", "less romance"]))
    loss.backward()
    assert loss > 0
    assert masks.generator.head.weight.grad is not None
    assert bool((masks.generator.head.weight.grad != 0).any())
