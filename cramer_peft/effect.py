"""Whether every masked layer is really called and moves the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cramer_peft.active import Gates
from cramer_peft.errors import EffectError
from cramer_peft.gates import FeatureGate, FeatureSpec, PartGate, RowColumnGate, Spec
from cramer_peft.layers.base import RequestMaskLayer
from cramer_peft.leftovers import masked_layers

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel


@dataclass(frozen=True)
class LayerEffect:
    """What one masked layer did in one run.

    Attributes:
        module: Its name.
        mode: ``"train"`` or ``"eval"``.
        calls: How often it asked for its gates.
        change: Largest change of the model's output, with random gates on this layer alone.
    """

    module: str
    mode: str
    calls: int
    change: float


class _Probe:
    """Random gates for one layer, gates of 1 for the others; counts the calls."""

    for_recompute = False
    is_default = False

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.calls = 0
        self._watched: str | None = None

    def for_forward(self) -> _Probe:
        return self

    def gates_of(self, entry: str) -> PartGate | None:
        self.calls += entry == self._watched
        return self._gates.get(entry)

    def watching(self, gates: Gates) -> _Probe:
        """The same with other ``gates`` for one layer, whose calls are counted by its first part."""
        probe = _Probe({**self._gates, **gates})
        probe._watched = next(iter(gates), None)
        return probe


def check_effect(
    masks: RequestMaskModel, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[LayerEffect]:
    """Run ``call`` with random gates on one masked layer at a time, in train and in eval mode.

    Training modes, buffers and the state of the random generators are put back.

    Raises:
        EffectError: If a layer is not called, or does not move the output; it names each.
    """
    if not masks.adapters_enabled:
        raise EffectError("adapters are disabled, so that no mask has an effect: leave disable_adapter() first.")
    layers = list(masked_layers(masks.model))
    effects: list[LayerEffect] = []
    for mode in ("train", "eval"):
        with _kept_as_it_was(masks.model), torch.random.fork_rng(), torch.no_grad():
            masks.model.train(mode == "train")
            specs = {layer.module_name: _specs(layer) for layer in layers}
            still = _Probe({entry: _gate(spec, 0.0) for own in specs.values() for entry, spec in own.items()})
            usual = _outputs(masks, call, args, kwargs, still)
            for layer in layers:
                own = specs[layer.module_name]
                probe = still.watching({entry: _gate(spec, 1.0) for entry, spec in own.items()})
                moved = _outputs(masks, call, args, kwargs, probe)
                effects.append(LayerEffect(layer.module_name, mode, probe.calls, _distance(usual, moved)))
    bad = [effect for effect in effects if not effect.calls or not effect.change > 0]
    if bad:
        listed = "\n  ".join(
            f"{effect.module!r} in {effect.mode} mode: "
            + ("is never called" if not effect.calls else "is called, and the output stays the same")
            for effect in bad
        )
        raise EffectError(
            f"masks on these modules have no effect on this example:\n  {listed}\nIts parent may read the weight "
            "directly: mask the parent, register a layer for it, or leave the module out by exclude_modules."
        )
    return effects


def _specs(layer: RequestMaskLayer) -> dict[str, Spec]:
    parts = layer.part_specs(layer.base_layer)
    return {layer.entry(part): parts[part] for part in layer.gated_parts()}


def _gate(spec: Spec, spread: float) -> PartGate:
    def around_one(features: int) -> Tensor:
        return 1 + spread * (torch.rand(1, features) - 0.5)

    if isinstance(spec, FeatureSpec):
        return FeatureGate(around_one(spec.features), shared=True)
    return RowColumnGate(around_one(spec.out_features), around_one(spec.in_features), gate_bias=True, shared=True)


def _outputs(
    masks: RequestMaskModel, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], probe: _Probe
) -> list[Tensor]:
    device = masks.generator.head.weight.device
    probe._gates = {entry: gate._map(lambda value: value.to(device)) for entry, gate in probe._gates.items()}
    with torch.random.fork_rng(), masks.carrier.carrying(probe):
        torch.manual_seed(0)  # the same dropout in every run
        found = list(_tensors(call(*args, **kwargs)))
    if not found:
        raise EffectError("the call returned no floating-point tensor: give check_effect a call= that returns scores.")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.to_padded_tensor(0.0) if value.is_nested else value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))


def _distance(usual: list[Tensor], moved: list[Tensor]) -> float:
    if [value.shape for value in usual] != [value.shape for value in moved]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(usual, moved, strict=True) if a.numel()]
    return max((float((a.float() - b.float()).abs().nan_to_num(0.0).max()) for a, b in pairs), default=0.0)


@contextmanager
def _kept_as_it_was(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    # A forward may also put new tensors in their places.
    held = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for module, own in held:
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, value in buffers:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)
