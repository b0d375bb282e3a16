"""Merging: fold one request into the weights, and put the original tensors back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from cramer_peft.adapter import Adapter, joined
from cramer_peft.errors import MergeError, RequestError, UnsupportedError
from cramer_peft.injection.plan import own_modules
from cramer_peft.injection.record import masked_layers, shared_storages
from cramer_peft.injection.weights import unusual_weights, weight_reader
from cramer_peft.layers.masked_layer import RequestMaskLayer
from cramer_peft.layers.output import MaskedOutput
from cramer_peft.masks import Mask, Masks


@dataclass
class Swap:
    """One parameter and the tensor that replaces it."""

    owner: nn.Module
    name: str
    original: nn.Parameter
    merged: nn.Parameter

    def put(self, parameter: nn.Parameter) -> None:
        """Put ``parameter`` in its place, on the device and in the dtype of the one that is there."""
        current = getattr(self.owner, self.name)
        if (current.device, current.dtype) != (parameter.device, parameter.dtype):
            parameter.data = parameter.data.to(current)
        setattr(self.owner, self.name, parameter)


@dataclass
class MergedRequest:
    """One request in the weights of a model."""

    adapters: list[str]
    swaps: list[Swap] = field(default_factory=list)
    kept: list[tuple[RequestMaskLayer, dict[str, Mask]]] = field(default_factory=list)  # masks no weight can hold

    def put(self) -> None:
        """Put the merged tensors in place."""
        for swap in self.swaps:
            swap.put(swap.merged)
        for layer, masks in self.kept:
            layer.put_merged_masks(masks)

    def take_out(self) -> None:
        """Put the original parameter objects back."""
        for swap in self.swaps:
            swap.put(swap.original)
        for layer, _ in self.kept:
            layer.merged_masks = {}

    def install(self, model: nn.Module, active: bool) -> None:
        """Tell the layers that the request is merged, and put its tensors in place if masks are on (``active``)."""
        if active:
            self.put()
        for layer in masked_layers(model):
            layer.merged_adapters = [name for name in self.adapters if name in layer.request_mask_specs]

    def remove(self, model: nn.Module, active: bool) -> None:
        """Undo :meth:`install`."""
        if active:
            self.take_out()
        for layer in masked_layers(model):
            layer.merged_adapters = []

    def check_permanent(self) -> None:
        """Check that the request can stay in the weights without the masks."""
        for layer, _ in self.kept:
            raise MergeError(
                f"module {layer.module_name!r}: its masks on {', '.join(layer.unfoldable_parts())} have no place in a "
                "weight, so they cannot be taken off. Keep the adapter, or leave the part out by module_parts."
            )


def stored_masks(adapters: list[Adapter]) -> Masks:
    """Return the masks of the adapters' stored default requests, all together."""
    missing = sorted(adapter.name for adapter in adapters if adapter.generator.default_request is None)
    if missing:
        raise UnsupportedError(
            f"adapters {missing} have no stored default request, and masks differ from request to request: merge "
            "one by merge_request(request), or store one by set_default_request(request)."
        )
    made = [adapter.masks(adapter.generator.default_request) for adapter in adapters]
    together = joined([masks for masks in made if masks is not None])
    return {} if together is None else together.make()


def plan_merge(model: nn.Module, masks: Masks, adapters: list[str], safe: bool = False) -> MergedRequest:
    """Fold one request's masks, by entry, into new tensors; nothing is touched yet."""
    rows = {mask.rows for mask in masks.values()}
    if not rows:
        raise RequestError(f"there is nothing to merge: the requests of {adapters} have strength 0.")
    if rows != {1}:
        raise RequestError(f"one request can be merged, found {max(rows)} rows.")
    shared, modules = shared_storages(model), dict(own_modules(model))
    merged = MergedRequest(adapters)
    with torch.no_grad():
        for layer in masked_layers(model):
            found = {part: masks[layer.entry(part)] for part in layer.masked_parts() if layer.entry(part) in masks}
            if not found:
                continue
            if not isinstance(layer, MaskedOutput):
                _check_foldable(layer, modules)
            merged.swaps += _swaps(layer, found, shared, adapters if safe else None)
            kept = {part: _one_row(mask) for part, mask in found.items() if part in layer.unfoldable_parts()}
            if kept:
                merged.kept.append((layer, kept))
    return merged


def _check_foldable(layer: RequestMaskLayer, modules: dict[str, nn.Module]) -> None:
    """Check that a request in the layer's weight would give what the request gives."""
    unusual = unusual_weights(layer.base_layer)
    if unusual is not None:
        raise MergeError(f"module {layer.module_name!r}: its weight is {unusual.partition(':')[0]}, so nothing merges.")
    reader = weight_reader(layer.module_name, modules)
    if reader is not None:
        raise MergeError(
            f"module {layer.module_name!r}: {reader} reads its weight directly, where a request does not act and a "
            "merged one would. Give the request at each call, or leave the module out by exclude_modules."
        )


def _swaps(layer: RequestMaskLayer, masks: dict[str, Mask], shared: set[int], safe_for: list[str] | None) -> list[Swap]:
    swaps = []
    try:
        folded = layer.fold_parts(masks, 0)
    except MergeError as error:
        raise MergeError(f"module {layer.module_name!r}: {error.args[0]}") from error
    for path, tensor in folded.items():
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


def _one_row(mask: Mask) -> Mask:
    return mask.map_tensors(lambda value: value[:1].detach()).with_values(shared=True)
