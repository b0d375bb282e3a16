"""Gradient checkpointing raises or gives right gradients; it is never silently wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cramer_peft import inject_request_masks
from cramer_peft.errors import CheckpointingError


class Checkpointed(nn.Module):
    """Two masked layers, of which the inner one may be checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.use_reentrant: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.use_reentrant is None:
            hidden = self.inner(x)
        else:
            hidden = checkpoint(self.inner, x, use_reentrant=self.use_reentrant)
        return self.outer(torch.tanh(hidden))

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward.__wrapped__(x) if hasattr(self.forward, "__wrapped__") else self.forward(x)


def by_keyword(masks, model, x, requests) -> None:
    masks(x, request=requests).square().sum().backward()


def block_around_all(masks, model, x, requests) -> None:
    with masks.request(requests):
        model(x).square().sum().backward()


def block_around_the_forward(masks, model, x, requests) -> None:
    with masks.request(requests):
        loss = model(x).square().sum()
    loss.backward()


def another_request_during_backward(masks, model, x, requests) -> None:
    with masks.request(requests):
        loss = model(x).square().sum()
    with masks.request(requests.flip(0)):
        loss.backward()


def another_entry_point(masks, model, x, requests) -> None:
    with masks.request(requests):
        model.predict(x).square().sum().backward()


def whole_model_checkpointed(masks, model, x, requests) -> None:
    reentrant = model.use_reentrant
    model.use_reentrant = None
    checkpoint(lambda x: masks(x, request=requests), x, use_reentrant=bool(reentrant)).square().sum().backward()


RUNS = [
    by_keyword,
    block_around_all,
    block_around_the_forward,
    another_request_during_backward,
    another_entry_point,
    whole_model_checkpointed,
]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_raises_or_is_right(make_config, gate: str, run: Callable, use_reentrant: bool) -> None:
    model, requests = Checkpointed(), torch.randn(3, 5)
    x = torch.randn(3, 4, requires_grad=True)
    masks = inject_request_masks(model, make_config(gate, target_modules=["inner", "outer"], request_dim=5)).eval()
    masks(x, request=requests).square().sum().backward()
    expected = [p.grad.clone() for p in masks.generator.parameters()]
    masks.zero_grad()
    model.use_reentrant = use_reentrant
    error = None
    try:
        run(masks, model, x, requests)
    except CheckpointingError as raised:
        error = raised
    if error is not None:
        assert "'inner' was run again inside backward: gradient checkpointing" in str(error)
    else:
        found = [p.grad for p in masks.generator.parameters()]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    model.use_reentrant = None
    masks.zero_grad()
    masks(x, request=requests).square().sum().backward()  # and the model still works
    assert all(torch.allclose(p.grad, e) for p, e in zip(masks.generator.parameters(), expected, strict=True))


def test_checkpointing_without_a_request_still_works(make_config) -> None:
    model, x = Checkpointed(), torch.randn(3, 4, requires_grad=True)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    inject_request_masks(model, make_config(target_modules=["inner", "outer"]))
    for model.use_reentrant in (True, False):
        model(x).sum().backward()
        assert torch.equal(x.grad, expected)
        x.grad = None


def test_the_reentrant_kind_without_a_gradient_to_its_input_warns(make_config) -> None:
    """It then runs without gradients altogether, whatever is inside: torch says so, and nothing is recomputed."""
    model, requests = Checkpointed(), torch.randn(3, 5)
    masks = inject_request_masks(model, make_config(target_modules=["inner", "outer"], request_dim=5))
    model.use_reentrant = True
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        masks(torch.randn(3, 4), request=requests).sum().backward()
    model.use_reentrant = False
    with pytest.raises(CheckpointingError, match="'inner'"):
        masks(torch.randn(3, 4), request=requests).sum().backward()
