"""Hooks on a masked module run around its masked forward, so that a request and the merged request agree."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.pytorch_utils import Conv1D

from cramer_peft import inject_request_masks
from cramer_peft.layers.hooks import call_with_hooks

DIM = 5


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x[..., 0].abs() * 7).long() % 8)


class Several(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x)[0] if isinstance(self.layer_itself, nn.MultiheadAttention) else self.layer(x)[0]

    @property
    def layer_itself(self) -> nn.Module:
        return getattr(self.layer, "base_layer", self.layer)


class One(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: One(nn.Linear(6, 6)),
    "Conv1D": lambda: One(Conv1D(6, 6)),
    "Conv1d": lambda: One(nn.Conv1d(4, 4, 3, padding=1)),
    "Embedding": Ids,
    "MultiheadAttention": lambda: Several(nn.MultiheadAttention(6, 2, batch_first=True)),
    "GRU": lambda: Several(nn.GRU(6, 6, batch_first=True)),
}


def change(value: Any, by: Callable[[Tensor], Tensor]) -> Any:
    """Change each floating-point tensor of what a module takes or gives; ids get the next one."""
    if isinstance(value, Tensor):
        return by(value) if value.is_floating_point() else value + 1
    if isinstance(value, (tuple, list)):
        return type(value)(change(each, by) for each in value)
    if isinstance(value, dict):
        return {key: change(each, by) for key, each in value.items()}
    return value


def plus(value: Any) -> Any:
    return change(value, lambda x: x + 1)


def double(value: Any) -> Any:
    return change(value, lambda x: 2 * x)


def hook_pre(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: plus(args))


def hook_pre_single(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: plus(args[0]) if len(args) == 1 else plus(args))


def hook_pre_keywords(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args, kwargs: (plus(args), plus(kwargs)), with_kwargs=True)


def hook_after(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, output: double(output))


def hook_after_keywords(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, kwargs, output: double(output), with_kwargs=True)


def hooks_in_order(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: double(args))
    layer.register_forward_pre_hook(lambda module, args: plus(args), prepend=True)
    layer.register_forward_hook(lambda module, args, output: plus(output))
    layer.register_forward_hook(lambda module, args, output: double(output), prepend=True)


HOOKS = [hook_pre, hook_pre_single, hook_pre_keywords, hook_after, hook_after_keywords, hooks_in_order]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_request_is_its_merged_weight_under_hooks(
    kind: str, hook: Callable, late: bool, gate: str, make_config
) -> None:
    model, x, vectors = MODELS[kind]().eval(), torch.randn(3, 4, 6), torch.randn(3, DIM)
    layer, unhooked = model.layer, model(x)
    if not late:
        hook(layer)
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"], request_dim=DIM))
    if late:
        hook(layer)
    frozen = masks(x)
    assert not torch.allclose(frozen, unhooked, atol=1e-2)
    asked, mixed = masks(x, request=vectors[0]), masks(x, request=[vectors[0], None, vectors[2]])
    assert torch.allclose(mixed[0], asked[0], atol=1e-5)
    assert torch.allclose(mixed[1], frozen[1], atol=1e-5)
    for row in (0, 2):
        masks.merge_request(vectors[row])
        assert torch.allclose(masks(x)[row], mixed[row], atol=1e-4)
        masks.unmerge()


@pytest.mark.parametrize("kind", MODELS)
def test_a_hook_sees_the_same_under_a_request_and_merged(kind: str, gate: str, make_config) -> None:
    model, x, vector = MODELS[kind]().eval(), torch.randn(3, 4, 6), torch.randn(DIM)
    seen: list[Any] = []
    model.layer.register_forward_hook(lambda module, args, output: seen.append((module, output)))
    layer = model.layer
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"], request_dim=DIM))
    masks(x, request=vector)
    masks.merge_request(vector)
    masks(x)
    (first, asked), (second, merged) = seen
    assert first is second is layer
    pairs = zip(asked, merged, strict=True) if isinstance(asked, tuple) else [(asked, merged)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs if a is not None)


def test_global_hooks(make_config, gate: str) -> None:
    model, x, vector = One(nn.Linear(6, 6)).eval(), torch.randn(3, 6), torch.randn(DIM)
    layer = model.layer
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"], request_dim=DIM))
    handles = [
        torch_module.register_module_forward_pre_hook(lambda m, args: plus(args) if m is layer else None),
        torch_module.register_module_forward_hook(lambda m, args, output: double(output) if m is layer else None),
        torch_module.register_module_forward_hook(
            lambda m, args, kwargs, output: plus(output) if m is layer else None, with_kwargs=True
        ),
    ]
    try:
        frozen = masks(x)
        asked = masks(x, request=vector)
        masks.merge_request(vector)
        assert torch.allclose(masks(x), asked, atol=1e-5)
    finally:
        for handle in handles:
            handle.remove()
    masks.unmerge()
    assert torch.allclose(frozen, 2 * masks(x + 1) + 1, atol=1e-5)
    assert not torch.allclose(asked, frozen, atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_backward_hooks_see_gradients_and_may_change_them(make_config, gate: str, several: bool) -> None:
    model, x, vectors = One(nn.Linear(6, 6)).eval(), torch.randn(3, 6), torch.randn(3, DIM)
    masks = inject_request_masks(model, make_config(gate, target_modules=["layer"], request_dim=DIM))

    def gradients() -> list[Tensor]:
        masks.zero_grad()
        own = x.clone().requires_grad_()
        masks(own, request=vectors).pow(2).sum().backward()
        return [own.grad, *(parameter.grad.clone() for parameter in masks.generator.parameters())]

    plain = gradients()
    layer, seen = model.layer.base_layer, []
    layer.register_full_backward_hook(lambda module, given, out: seen.append((given[0].shape, out[0].shape)))
    if several:
        layer.register_full_backward_pre_hook(lambda module, out: (3 * out[0],))
    hooked = gradients()
    assert seen == [(x.shape, x.shape)]
    factor = 3 if several else 1
    assert all(torch.allclose(factor * a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, hooked, strict=True))


def test_a_hook_that_raises_ends_the_call(make_config) -> None:
    model, x = One(nn.Linear(6, 6)).eval(), torch.randn(3, 6)
    masks = inject_request_masks(model, make_config(target_modules=["layer"], request_dim=DIM))

    def fail(*_: Any) -> None:
        raise RuntimeError("mine")

    handle = model.layer.base_layer.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="mine"):
        masks(x, request=torch.randn(DIM))
    handle.remove()
    assert masks.request_context.current() is None


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("keyword", [False, True])
def test_it_is_torchs_own_call(hook: Callable, keyword: bool) -> None:
    layer, x = nn.Linear(6, 6), torch.randn(3, 6)
    hook(layer)
    args, kwargs = ((), {"input": x}) if keyword else ((x,), {})
    if keyword and hook in (hook_pre, hook_pre_single, hooks_in_order):
        layer(*args, **kwargs)  # torch gives such hooks no keywords
    assert torch.equal(call_with_hooks(layer, layer.forward, args, kwargs), layer(*args, **kwargs))


def test_hooks_that_are_always_called(make_config) -> None:
    model, x, calls = One(nn.Linear(6, 6)).eval(), torch.randn(3, 6), []

    def fail(*_: Any) -> None:
        raise RuntimeError("mine")

    model.layer.register_forward_pre_hook(fail)
    model.layer.register_forward_hook(lambda *_: calls.append(1), always_call=True)
    masks = inject_request_masks(model, make_config(target_modules=["layer"], request_dim=DIM))
    for request in ({}, {"request": torch.randn(DIM)}):
        with pytest.raises(RuntimeError, match="mine"):
            masks(x, **request)
    assert len(calls) == 2
