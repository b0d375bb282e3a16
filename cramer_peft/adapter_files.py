"""An adapter's two files: ``adapter_config.json`` and ``adapter_model.safetensors``.

Keys are those that PEFT's own ``save_pretrained`` writes, so either door reads what the other wrote.
Our reader is strict: it checks everything against the model before it touches it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders.base import RequestEncoder, is_registered
from cramer_peft.errors import AdapterFileError, EncoderError
from cramer_peft.generator import make_generator
from cramer_peft.io import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_finite,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from cramer_peft.registration import RequestMaskPeftType
from cramer_peft.targets import own_modules, plan_injection

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel

_ROOT = "base_model."
_GENERATOR = "request_mask_generator."


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from its files, not yet attached to a model."""

    folder: Path
    config: RequestMaskConfig
    tensors: dict[str, Tensor]


def without_adapter_name(key: str, adapter_name: str) -> str:
    """A generator's key in the model → its key in the file, which does not hold the adapter's name."""
    pattern = rf"(^|\.){re.escape(_GENERATOR)}{re.escape(adapter_name)}\."
    return re.sub(pattern, rf"\1{_GENERATOR}", key, count=1)


def save_adapter(masks: RequestMaskModel, folder: Path, adapter_name: str) -> None:
    """Write one adapter's files, each atomically."""
    config = masks.peft_config[adapter_name]
    tensors = get_peft_model_state_dict(masks, adapter_name=adapter_name, save_embedding_layers=False)
    metadata = {"adapter": adapter_name, "base_fingerprint": config.base_fingerprint or ""}
    write_safetensors(folder / WEIGHTS_NAME, {_ROOT + key: value for key, value in tensors.items()}, metadata)
    write_json(folder / CONFIG_NAME, {**config.to_dict(), "inference_mode": True})


def read_adapter(folder: Path, check_base: bool, is_trainable: bool) -> StoredAdapter:
    """Read an adapter's files, without a model.

    Raises:
        AdapterFileError: If a file is missing, corrupt, or holds an unknown or impossible field.
    """
    path = folder / CONFIG_NAME
    values = read_json(path)
    if values.get("peft_type") != RequestMaskPeftType.REQUEST_MASK.value:
        raise AdapterFileError(f"{path}: expected peft_type 'REQUEST_MASK', found {values.get('peft_type')!r}.")
    known = {field.name for field in dataclasses.fields(RequestMaskConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise AdapterFileError(f"{path}: unknown fields {unknown}; was it written by a newer version?")
    try:
        config = RequestMaskConfig(**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: {error}") from error
    missing = [name for name in ("request_dim", "masked_modules", "target_modules") if getattr(config, name) is None]
    if missing:
        raise AdapterFileError(f"{path}: {missing} must be set in a saved adapter.")
    fingerprint = config.base_fingerprint if check_base else None
    config = replace(config, base_fingerprint=fingerprint)
    config.inference_mode = not is_trainable
    tensors, _ = read_safetensors(folder / WEIGHTS_NAME)
    return StoredAdapter(folder, config, tensors)


def check_fits(stored: StoredAdapter, model: nn.Module, encoder: RequestEncoder | None) -> None:
    """Check a stored adapter against a model and an encoder, without touching either.

    Raises:
        AdapterFileError: If keys are missing or unexpected, or shapes differ; it lists which.
        BaseModelMismatchError: If it was made for other modules or weights.
        EncoderError: If it was made with another encoder.
    """
    config = stored.config
    _check_encoder(config, encoder)
    plan = plan_injection(model, config)
    with torch.device("meta"):
        generator = make_generator(config, plan.specs)
    expected = {f"{_ROOT}{_GENERATOR}{key}": value.shape for key, value in generator.state_dict().items()}
    expected.update(_saved_modules(model, config))
    problems = _differences(expected, stored.tensors)
    if problems:
        raise AdapterFileError(f"{stored.folder / WEIGHTS_NAME} does not fit its configuration: {problems}.")


def check_remapped(model: nn.Module, adapter_name: str, tensors: dict[str, Tensor]) -> None:
    """What PEFT's own loading allows to be checked: the adapter's tensors, just before they are copied.

    Args:
        model: The model that PEFT loads into.
        adapter_name: Name of the adapter there.
        tensors: What is to be loaded, by the model's own keys.

    Raises:
        AdapterFileError: If a generator's keys are missing or unexpected, shapes differ, or a tensor holds
            NaN or infinity.
    """
    prefix = f"{_GENERATOR}{adapter_name}."
    expected = {key: value.shape for key, value in model.state_dict().items() if prefix in key}
    problems = _differences(expected, {key: value for key, value in tensors.items() if _GENERATOR in key})
    if problems:
        raise AdapterFileError(f"the file does not fit the adapter {adapter_name!r}: {problems}.")
    check_finite(tensors, f"the file of adapter {adapter_name!r}")


def fill_adapter(masks: RequestMaskModel, adapter_name: str, stored: StoredAdapter) -> None:
    """Copy stored tensors into an adapter that was injected from the same configuration."""
    prefix = _ROOT + _GENERATOR
    generator = masks.request_mask_generator[adapter_name]
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in stored.tensors.items() if k.startswith(prefix)})
    for name, module in masks.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            start = f"{_ROOT}{name}."
            tensors = {k.removeprefix(start): v for k, v in stored.tensors.items() if k.startswith(start)}
            module.modules_to_save[adapter_name].load_state_dict(tensors)
    if stored.config.inference_mode:
        masks.set_requires_grad(adapter_name, requires_grad=False)


def _differences(expected: dict[str, torch.Size], tensors: dict[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape, in words; empty where nothing is."""
    problems = [f"missing {key}" for key in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {key}" for key in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(expected[key])}"
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key]
    ]
    return "; ".join(problems[:10])


def _check_encoder(config: RequestMaskConfig, encoder: RequestEncoder | None) -> None:
    if config.encoder is None:
        return
    if encoder is None:
        if not is_registered(config.encoder):
            raise EncoderError(
                f"the adapter was made with the request encoder {config.encoder!r}, which is not registered: register "
                "it by cramer_peft.register_request_encoder, or pass the encoder object as encoder=…"
            )
    elif encoder.name != config.encoder:
        raise EncoderError(f"the adapter was made with the request encoder {config.encoder!r}, found {encoder.name!r}.")


def _saved_modules(model: nn.Module, config: RequestMaskConfig) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, module in own_modules(model):
        if isinstance(module, ModulesToSaveWrapper):
            module = module.original_module
        if any(name.endswith(wanted) for wanted in config.modules_to_save or []):  # as PEFT matches them
            shapes.update({f"{_ROOT}model.{name}.{key}": value.shape for key, value in module.state_dict().items()})
    return shapes
