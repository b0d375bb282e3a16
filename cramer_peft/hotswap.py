"""Putting another adapter's trained values in the place of one that is there, tensor by tensor.

The tensors stay the same objects, so that a compiled model does not notice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from cramer_peft import adapter_files
from cramer_peft.adapter_files import StoredAdapter
from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import AdapterFileError, MergeError

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel

# What the shapes, the graph or the meaning of a request vector hang on.
_SAME = (
    "gate",
    "rank",
    "drop_ratio",
    "gate_bias",
    "generator_width",
    "normalize_requests",
    "encoder",
    "encoder_options",
    "encoder_tuning",
    "request_dim",
    "batch_dim",
    "batch_folding",
    "masked_modules",
    "modules_to_save",
)


def hotswap(masks: RequestMaskModel, adapter_name: str, folder: Path, check_base: bool = True) -> None:
    """Fill an adapter with the values of another one's files.

    Raises:
        AdapterFileError: If a file is missing or corrupt, or is of an adapter of another form; it lists what
            differs.
        BaseModelMismatchError: If it was made for other weights.
        MergeError: If a request is merged into the weights.
    """
    if masks.merged:
        raise MergeError("a request is merged into the weights: call unmerge() before swapping an adapter.")
    current = masks.peft_config[adapter_name]
    stored = adapter_files.read_adapter(folder, check_base=check_base, is_trainable=not current.inference_mode)
    _check_same_form(stored, current, adapter_name)
    adapter_files.check_fits(stored, masks.model, _encoder_object(masks, adapter_name))
    _fill(masks, adapter_name, stored)


def _check_same_form(stored: StoredAdapter, current: RequestMaskConfig, adapter_name: str) -> None:
    found = stored.config
    differing = [name for name in _SAME if _plain(getattr(found, name)) != _plain(getattr(current, name))]
    if differing:
        listed = "; ".join(_difference(name, found, current) for name in differing)
        raise AdapterFileError(
            f"{stored.folder} cannot be swapped in for adapter {adapter_name!r}: {listed}. Add it beside the other by "
            "load_adapter(folder, name), or swap in one of the same form."
        )


def _difference(name: str, found: RequestMaskConfig, current: RequestMaskConfig) -> str:
    if name == "masked_modules":
        layouts = found.masked_modules or {}, current.masked_modules or {}
        keys = sorted(
            key for key in layouts[0].keys() | layouts[1].keys() if layouts[0].get(key) != layouts[1].get(key)
        )
        return f"{len(keys)} masked modules differ, for example {keys[0]!r}"
    return f"its {name} is {getattr(found, name)!r}, the adapter's {getattr(current, name)!r}"


def _plain(value: object) -> object:
    return value or None if isinstance(value, (dict, list)) else value


def _encoder_object(masks: RequestMaskModel, adapter_name: str) -> RequestEncoder | None:
    return masks.encoder(adapter_name).encoder if masks.peft_config[adapter_name].encoder is not None else None


def _fill(masks: RequestMaskModel, adapter_name: str, stored: StoredAdapter) -> None:
    current, generator = masks.peft_config[adapter_name], masks.generator_of(adapter_name)
    before, request = (current.strength, current.default_request), generator.default_request
    values = _values(masks, adapter_name)
    kept = [(value, value.detach().clone(), value.requires_grad) for value in values]
    try:
        if request is None or stored.config.default_request is None:
            empty = torch.zeros(generator.request_dim, device=generator.head.weight.device)
            generator.default_request = None if stored.config.default_request is None else empty
        adapter_files.fill_adapter(masks, adapter_name, stored)
        current.strength, current.default_request = stored.config.strength, stored.config.default_request
    except BaseException:
        current.strength, current.default_request = before
        generator.default_request = request
        with torch.no_grad():
            for value, old, _ in kept:
                value.copy_(old)
        raise
    finally:
        for value, _, flag in kept:
            value.requires_grad_(flag)
        masks._sync_default()


def _values(masks: RequestMaskModel, adapter_name: str) -> list[Tensor]:
    """Every tensor that belongs to the adapter: those of its generator, its encoder and its saved modules."""
    owners: list[nn.Module] = [masks.generator_of(adapter_name)]
    tuned = masks.tuned_encoder(adapter_name)
    if tuned is not None:
        owners.append(tuned)
    owners += [
        module.modules_to_save[adapter_name]
        for module in masks.modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
    ]
    return [value for owner in owners for value in (*owner.parameters(), *owner.buffers())]
