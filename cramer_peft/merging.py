"""Folding one request into the weights, and putting the original tensors back."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cramer_peft.active import Gates
from cramer_peft.errors import MergeError
from cramer_peft.gates import FeatureGate, PartGate
from cramer_peft.layers.base import RequestMaskLayer
from cramer_peft.leftovers import masked_layers


@dataclass
class Swap:
    """One parameter and the tensor that stands in for it."""

    owner: nn.Module
    name: str
    original: nn.Parameter
    merged: nn.Parameter

    def put(self, parameter: nn.Parameter) -> None:
        """Make ``parameter`` the one in force; it follows the other where that was moved or cast since."""
        current = getattr(self.owner, self.name)
        if (current.device, current.dtype) != (parameter.device, parameter.dtype):
            parameter.data = parameter.data.to(current)
        setattr(self.owner, self.name, parameter)


@dataclass
class Merged:
    """One request in the weights of a model.

    Attributes:
        adapters: Whose request.
        swaps: The parameters that were replaced.
        kept: The gates that have no place in a weight, by layer.
    """

    adapters: list[str]
    swaps: list[Swap] = field(default_factory=list)
    kept: list[tuple[RequestMaskLayer, dict[str, PartGate]]] = field(default_factory=list)

    def put(self) -> None:
        """Put the merged tensors in force."""
        for swap in self.swaps:
            swap.put(swap.merged)
        for layer, gates in self.kept:
            layer.put_merged_gates(gates)

    def take_out(self) -> None:
        """Put the original parameters back, the very objects."""
        for swap in self.swaps:
            swap.put(swap.original)
        for layer, _ in self.kept:
            layer.merged_gates = {}


def plan_merge(model: nn.Module, gates: Gates, adapters: list[str], safe: bool = False) -> Merged:
    """Fold one request's gates into new tensors; nothing is touched yet.

    Args:
        model: The model with masked layers.
        gates: The gates of one request, by entry.
        adapters: Names of the adapters that they are of.
        safe: Whether to refuse folded weights that hold NaN or infinity.

    Raises:
        MergeError: If a weight is shared with another module, is no plain parameter, or (``safe``) folds
            to NaN or infinity; it names the module.
    """
    shared = shared_storages(model)
    merged = Merged(adapters)
    with torch.no_grad():
        for layer in masked_layers(model):
            found = {part: gates[layer.entry(part)] for part in layer.gated_parts() if layer.entry(part) in gates}
            if not found:
                continue
            merged.swaps += _swaps(layer, found, shared, adapters if safe else None)
            kept = {part: _one_row(gate) for part, gate in found.items() if part in layer.unfoldable_parts()}
            if kept:
                merged.kept.append((layer, kept))
    return merged


def _swaps(
    layer: RequestMaskLayer, gates: dict[str, PartGate], shared: set[int], safe_for: list[str] | None
) -> list[Swap]:
    swaps = []
    for path, tensor in layer.fold_parts(gates, 0).items():
        owner_path, _, name = path.rpartition(".")
        owner = layer.base_layer.get_submodule(owner_path)
        original = owner._parameters.get(name)
        where = f"module {layer.module_name!r}: its parameter {path!r}"
        if original is None:
            raise MergeError(
                f"{where} is a buffer, or made by a parametrization or a hook: no request can be merged into it."
            )
        if original.untyped_storage().data_ptr() in shared:
            raise MergeError(
                f"{where} is shared with another module (tied weights), which a merge would change too. Leave the "
                "module out by exclude_modules, untie the weights, or give the request at each call."
            )
        if safe_for is not None and not bool(torch.isfinite(tensor).all()):
            raise MergeError(
                f"NaNs detected in the merged weights. The adapter {safe_for[0]} seems to be broken: {where} "
                "would hold NaN or infinity."
            )
        tensor = tensor.detach().to(original.dtype).contiguous()
        swaps.append(Swap(owner, name, original, nn.Parameter(tensor, requires_grad=False)))
    return swaps


def shared_storages(model: nn.Module) -> set[int]:
    """The storages that parameters of several modules lie in (tied weights), by address."""
    holders: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.is_meta:
                holders[parameter.untyped_storage().data_ptr()].add(id(module))
    return {storage for storage, modules in holders.items() if len(modules) > 1}


def _one_row(gate: PartGate) -> PartGate:
    assert isinstance(gate, FeatureGate)  # a gate on a weight always has a place in it
    values: Tensor = gate.row(0)
    return FeatureGate(values[None].detach(), shared=True)
