"""Every way to run a checkpointed forward and its backward: gradients are right, or an error says why not."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import CheckpointingError

DEFAULT = [1.0, -2.0, 0.5, 1.5, 0.3]
KINDS: dict[str, dict[str, Any]] = {
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
    "with context": {"use_reentrant": False},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.drop(torch.tanh(self.up(x))))


class Stack(nn.Module):
    """Two blocks, each checkpointed where ``options`` are set; ``predict`` goes around the root's call."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.options: dict[str, Any] | None = None

    def _run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.options is None:
                x = block(x)
            elif "context_only" in self.options:  # as with context, but nothing is recomputed
                with self.options["context_only"]()[0]:
                    x = block(x)
            else:
                x = checkpoint(block, x, **self.options)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def predict(self, x: Tensor) -> Tensor:
        return self._run(x)


def make(gate: str, default: bool, training: bool) -> RequestMaskModel:
    torch.manual_seed(0)
    config = RequestMaskConfig(
        target_modules=["up", "down"],
        request_dim=5,
        gate=gate,
        init_weights=False,
        default_request=DEFAULT if default else None,
    )
    return inject_request_masks(Stack(), config).train(training)


REQUESTS = torch.tensor([[0.5, 1.0, -1.0, 2.0, 0.1], [1.0, 0.0, 0.0, -1.0, 1.0], [0.2, -0.7, 1.1, 0.0, 0.4]])

Forward = Callable[[RequestMaskModel, Tensor], Tensor]


def in_a_block(masks: RequestMaskModel, x: Tensor) -> Tensor:
    with masks.request(REQUESTS[0]):
        return masks.model(x)


def by_another_entry(masks: RequestMaskModel, x: Tensor) -> Tensor:
    with masks.request(REQUESTS):
        return masks.model.predict(x)


def disabled(masks: RequestMaskModel, x: Tensor) -> Tensor:
    with masks.disable_adapter():
        return masks(x)


FORWARDS: dict[str, Forward] = {
    "keyword": lambda masks, x: masks(x, request=REQUESTS),
    "block": in_a_block,
    "another entry": by_another_entry,
    "request=None": lambda masks, x: masks(x, request=None),
    "nothing said": lambda masks, x: masks(x),
    "nothing said, another entry": lambda masks, x: masks.model.predict(x),
    "disabled": disabled,
}

AROUND_BACKWARD: dict[str, Callable[[RequestMaskModel], AbstractContextManager[Any]]] = {
    "nothing": lambda masks: nullcontext(),
    "another request": lambda masks: masks.request(REQUESTS.flip(0)),
    "no request": lambda masks: masks.request(None),
    "disabled": lambda masks: masks.disable_adapter(),
}


def gradients(
    masks: RequestMaskModel, forward: Forward, around: Callable[..., Any], options: dict[str, Any] | None, x: Tensor
) -> list[Tensor]:
    """Gradients of the generator and of ``x``, by two forwards before one backward."""
    masks.zero_grad()
    x = x.clone().requires_grad_()
    masks.model.options = options
    torch.manual_seed(3)
    loss = forward(masks, x).square().sum() + forward(masks, 2 * x).square().sum()
    with around(masks):
        loss.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in masks.generator.parameters()]
    assert x.grad is not None
    return [*found, x.grad]


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def without_checkpoints(kind: str, forward: Forward, masks: RequestMaskModel) -> list[Tensor]:
    options = {"context_only": masks.checkpoint_contexts} if kind == "with context" else None
    return gradients(masks, forward, AROUND_BACKWARD["nothing"], options, X)


def outcome(
    kind: str, forward: Forward, around: Callable[..., Any], masks: RequestMaskModel, expected: list[Tensor]
) -> str:
    options = dict(KINDS[kind])
    if kind == "with context":
        options["context_fn"] = masks.checkpoint_contexts
    try:
        found = gradients(masks, forward, around, options, X)
    except CheckpointingError:
        return "refused"
    close = all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True))
    return "right" if close else "wrong"


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("default", [False, True], ids=["no default", "default"])
def test_right_or_refused(gate: str, default: bool, training: bool) -> None:
    outcomes = {}
    for kind, forward in itertools.product(KINDS, FORWARDS):
        expected = without_checkpoints(kind, FORWARDS[forward], make(gate, default, training))
        for around in AROUND_BACKWARD:
            masks = make(gate, default, training)  # anew: what has been in force is never forgotten
            found = outcome(kind, FORWARDS[forward], AROUND_BACKWARD[around], masks, expected)
            outcomes[kind, forward, around] = found
    counts = Counter(outcomes.values())
    print(f"{gate}, default={default}, training={training}: {dict(counts)}")
    wrong = [case for case, found in outcomes.items() if found == "wrong"]
    assert not wrong, wrong
    noise = gate == "topk" and training
    must_be_right = {case for case in outcomes if case[0] == "with context" and case[2] != "disabled"}
    if default and not noise:  # nobody has to say a stored request, so it cannot be lost
        must_be_right |= {
            (kind, forward, "nothing")
            for kind in ("reentrant", "non-reentrant")
            for forward in ("nothing said", "nothing said, another entry")
        }
    if not default:  # the frozen model: nothing to lose
        must_be_right |= {(kind, "nothing said", "nothing") for kind in KINDS}
    assert {case for case in must_be_right if outcomes[case] != "right"} == set()
    must_be_refused = {(kind, "keyword", "nothing") for kind in ("reentrant", "non-reentrant")}
    assert {outcomes[case] for case in must_be_refused} == {"refused"}


@contextmanager
def _default_set_later(gate: str) -> Iterator[RequestMaskModel]:
    masks = make(gate, default=False, training=False)
    masks(torch.randn(3, 4))  # a look with gradients on must not stand in the way
    masks.set_default_request(torch.tensor(DEFAULT))
    yield masks


@pytest.mark.parametrize("kind", ["reentrant", "non-reentrant"])
def test_a_default_request_stored_later(gate: str, kind: str) -> None:
    x, found = torch.randn(3, 4), []
    for options in (None, KINDS[kind]):
        with _default_set_later(gate) as masks:
            found.append(gradients(masks, FORWARDS["nothing said"], AROUND_BACKWARD["nothing"], options, x))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*found, strict=True))
    assert found[0][0].abs().sum() > 0


def test_a_request_and_a_default_in_turn_are_told_apart() -> None:
    """Once both have run with gradients, a recompute without a context cannot know which it is for."""
    masks, x = make("low_rank", default=True, training=False), torch.randn(3, 4, requires_grad=True)
    masks.model.options = {"use_reentrant": False}
    first = masks(x).sum()
    second = masks(x, request=REQUESTS).sum()
    with pytest.raises(CheckpointingError):
        first.backward()
    with pytest.raises(CheckpointingError):
        second.backward()
    masks.model.options["context_fn"] = masks.checkpoint_contexts
    (masks(x).sum() + masks(x, request=REQUESTS).sum()).backward()


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_backward_in_another_thread(kind: str, default: bool) -> None:
    """Where a request does not reach of itself, as in the threads that torch runs the backward of a GPU in."""
    x, forward = torch.linspace(-1, 1, 12).reshape(3, 4), FORWARDS["nothing said" if default else "keyword"]
    expected = gradients(make("low_rank", default, False), forward, AROUND_BACKWARD["nothing"], None, x)
    masks = make("low_rank", default, False)
    masks.model.options = dict(KINDS[kind])
    if kind == "with context":
        masks.model.options["context_fn"] = masks.checkpoint_contexts
    x.requires_grad_()
    loss = forward(masks, x).square().sum() + forward(masks, 2 * x).square().sum()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(loss.backward)
        if kind != "with context" and not default:
            with pytest.raises(CheckpointingError, match="was run again inside backward"):
                job.result()
            return
        job.result()
    found = [p.grad for p in masks.generator.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=False))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_the_whole_call_checkpointed_brings_its_request_itself(gate: str, use_reentrant: bool) -> None:
    """Noise included: a checkpoint puts the random state back, and the gates are made inside it."""
    x, found = torch.randn(3, 4), []
    for run in (
        lambda masks, x: masks(x, request=REQUESTS),
        lambda masks, x: checkpoint(lambda x: masks(x, request=REQUESTS), x, use_reentrant=use_reentrant),
    ):
        masks = make(gate, default=False, training=True)
        found.append(gradients(masks, run, AROUND_BACKWARD["nothing"], None, x))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*found, strict=True))
    assert found[0][0].abs().sum() > 0


def test_checkpoints_inside_checkpoints() -> None:
    x = torch.randn(3, 4)

    def nested(masks: RequestMaskModel, x: Tensor) -> Tensor:
        options = {"use_reentrant": False, "context_fn": masks.checkpoint_contexts}
        with masks.request(REQUESTS):
            return checkpoint(masks.model, x, **options)

    expected = gradients(make("scale", False, True), FORWARDS["keyword"], AROUND_BACKWARD["nothing"], None, x)
    masks = make("scale", False, True)
    options = {"use_reentrant": False, "context_fn": masks.checkpoint_contexts}
    found = gradients(masks, nested, AROUND_BACKWARD["another request"], options, x)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, expected, strict=True))
    for inner in ({"use_reentrant": True}, {"use_reentrant": False}):
        with pytest.raises(CheckpointingError):
            gradients(make("scale", False, True), nested, AROUND_BACKWARD["nothing"], inner, x)
