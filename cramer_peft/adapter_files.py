"""An adapter's two files: ``adapter_config.json`` and ``adapter_model.safetensors``.

Keys are those that PEFT's own ``save_pretrained`` writes, so either door reads what the other wrote.
Our reader is strict: it checks everything against the model before it touches it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders.base import RequestEncoder, is_registered, make_encoder
from cramer_peft.errors import AdapterFileError, ConfigError, EncoderError
from cramer_peft.fingerprint import module_fingerprint
from cramer_peft.generator import make_generator
from cramer_peft.storage.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    TensorInfo,
    check_finite,
    read_json,
    read_layout,
    read_safetensors,
    write_json,
    write_safetensors,
)
from cramer_peft.stored_config import (
    check_encoder_options,
    check_inside,
    config_digest,
    match_by_list,
    parse_config,
    short,
)
from cramer_peft.targets import own_modules, plan_injection

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel

_ROOT = "base_model."
_GENERATOR = "request_mask_generator."
_ENCODER = "request_mask_encoder."


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from its files, not yet attached to a model.

    Attributes:
        folder: Where the files are.
        config: The configuration.
        layout: What the header of the file of weights says, by key.
        config_digest: Digest of the configuration's file.
    """

    folder: Path
    config: RequestMaskConfig
    layout: dict[str, TensorInfo]
    config_digest: str

    @cached_property
    def weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The file of weights, read when first asked for: after its layout was found to be what is expected."""
        return read_safetensors(self.folder / WEIGHTS_NAME)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights, by key."""
        return self.weights[0]


def without_adapter_name(key: str, adapter_name: str) -> str:
    """A key of the generator or tuned encoder in the model → its key in the file, without the adapter's name."""
    pattern = rf"(^|\.)({re.escape(_GENERATOR)}|{re.escape(_ENCODER)}){re.escape(adapter_name)}\."
    return re.sub(pattern, r"\1\2", key, count=1)


def save_adapter(masks: RequestMaskModel, folder: Path, adapter_name: str) -> None:
    """Write one adapter's files, each atomically.

    Raises:
        ConfigError: If there is no adapter of that name.
    """
    if adapter_name not in masks.peft_config:
        raise ConfigError(f"there is no adapter {adapter_name!r}; there are {sorted(masks.peft_config)}.")
    config = masks.peft_config[adapter_name]
    values = {**config.to_dict(), "inference_mode": True}
    tensors = get_peft_model_state_dict(masks, adapter_name=adapter_name, save_embedding_layers=False)
    metadata = {
        "adapter": adapter_name,
        "base_fingerprint": config.base_fingerprint or "",
        "config_digest": config_digest(values),
    }
    write_safetensors(folder / WEIGHTS_NAME, {_ROOT + key: value for key, value in tensors.items()}, metadata)
    write_json(folder / CONFIG_NAME, values)


def read_adapter(folder: Path, check_base: bool, is_trainable: bool) -> StoredAdapter:
    """Read an adapter's files, without a model.

    Raises:
        AdapterFileError: If a file is missing, corrupt, or holds an unknown or impossible field.
    """
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    check_inside(folder, path)
    values = read_json(path)
    config = parse_config(path, values)
    fingerprint = config.base_fingerprint if check_base else None
    config = replace(config, base_fingerprint=fingerprint)
    config.inference_mode = not is_trainable
    check_inside(folder, weights)
    return StoredAdapter(folder, config, read_layout(weights)[0], config_digest(values))


def check_fits(stored: StoredAdapter, model: nn.Module, encoder: RequestEncoder | None) -> None:
    """Check a stored adapter against a model and an encoder, without touching either.

    Raises:
        AdapterFileError: If keys are missing or unexpected, or shapes differ; it lists which. Also if the
            two files are of different saves.
        BaseModelMismatchError: If it was made for other modules or weights.
        EncoderError: If it was made with another encoder.
    """
    config = stored.config
    _check_encoder(config, encoder)
    match_by_list(config, model)
    plan = plan_injection(model, config)
    try:
        with torch.device("meta"):
            generator = make_generator(config, plan.specs)
    except (RuntimeError, TypeError, OverflowError) as error:
        where = stored.folder / CONFIG_NAME
        raise AdapterFileError(f"{where}: no generator can be as large as it says: {short(error)}.") from error
    expected: dict[str, Tensor] = {f"{_ROOT}{_GENERATOR}{key}": v for key, v in generator.state_dict().items()}
    expected.update(_saved_modules(model, config))
    if config.encoder_tuning != "none":
        expected.update(_tuned_parameters(config, encoder))
    _check_weights(stored, expected)


def _tuned_parameters(config: RequestMaskConfig, encoder: RequestEncoder | None) -> dict[str, Tensor]:
    from cramer_peft.encoders.tuned import tuned_shapes

    used = encoder if encoder is not None else make_encoder(str(config.encoder), config.encoder_options)
    shapes = tuned_shapes(used, config.encoder_tuning)
    check_encoder_weights(config, used)
    return {f"{_ROOT}{_ENCODER}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}


def check_encoder_weights(config: RequestMaskConfig, encoder: RequestEncoder) -> None:
    """Check that a tuned encoder starts from the parameters that it was tuned from.

    Raises:
        EncoderError: If the encoder has others.
    """
    found = encoder_fingerprint(encoder)
    if config.encoder_fingerprint not in (None, found):
        raise EncoderError(
            f"the adapter tuned parts of a request encoder {encoder.name!r} with other parameters: it expects "
            f"{config.encoder_fingerprint}, found {found}. Give the encoder that it was trained with."
        )


def encoder_fingerprint(encoder: RequestEncoder) -> str | None:
    """Digest of an encoder's parameters; None where it has no module."""
    module = getattr(encoder, "module", None)
    return module_fingerprint(module) if isinstance(module, nn.Module) else None


def _check_weights(stored: StoredAdapter, expected: dict[str, Tensor]) -> None:
    path = stored.folder / WEIGHTS_NAME
    # The header first, so that nothing larger than what is expected is read.
    problems = _differences(expected, stored.layout) or _differences(expected, stored.tensors)
    if problems:
        raise AdapterFileError(f"{path} does not fit its configuration: {problems}.")
    check_finite({key: value.to(expected[key].dtype) for key, value in stored.tensors.items()}, str(path))
    # Files that PEFT wrote have no digest.
    if stored.weights[1].get("config_digest") not in (None, stored.config_digest):
        raise AdapterFileError(
            f"{path} and {CONFIG_NAME} beside it are of different saves: one was changed, or a save was interrupted "
            "between the two. Save the adapter again; to change a field, load the adapter, set it and save."
        )


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
    prefixes = (f"{_GENERATOR}{adapter_name}.", f"{_ENCODER}{adapter_name}.")
    expected = {key: value for key, value in model.state_dict().items() if any(p in key for p in prefixes)}
    ours = {key: value for key, value in tensors.items() if _GENERATOR in key or _ENCODER in key}
    problems = _differences(expected, ours)
    if problems:
        raise AdapterFileError(f"the file does not fit the adapter {adapter_name!r}: {problems}.")
    check_finite(tensors, f"the file of adapter {adapter_name!r}")


def fill_adapter(masks: RequestMaskModel, adapter_name: str, stored: StoredAdapter) -> None:
    """Copy stored tensors into an adapter that was injected from the same configuration."""
    prefix = _ROOT + _GENERATOR
    generator = masks.request_mask_generator[adapter_name]
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in stored.tensors.items() if k.startswith(prefix)})
    tuned = masks.tuned_encoder(adapter_name)
    if tuned is not None:
        start = _ROOT + _ENCODER
        tuned.load_state_dict({k.removeprefix(start): v for k, v in stored.tensors.items() if k.startswith(start)})
    for name, module in masks.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            start = f"{_ROOT}{name}."
            tensors = {k.removeprefix(start): v for k, v in stored.tensors.items() if k.startswith(start)}
            module.modules_to_save[adapter_name].load_state_dict(tensors)
    if stored.config.inference_mode:
        masks.set_requires_grad(adapter_name, requires_grad=False)


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, TensorInfo | Tensor]) -> str:
    """What is missing, unexpected, of another shape or kind of number, in words; empty where nothing is."""
    problems = [f"missing {key}" for key in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {short(key, 200)}" for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if tuple(found[key].shape) != tuple(expected[key].shape):
            problems.append(f"{key} has shape {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}")
        elif found[key].dtype.is_floating_point != expected[key].dtype.is_floating_point:
            problems.append(f"{key} has dtype {found[key].dtype}, expected {expected[key].dtype}")
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
        check_encoder_options(config)
    elif encoder.name != config.encoder:
        raise EncoderError(f"the adapter was made with the request encoder {config.encoder!r}, found {encoder.name!r}.")


def _saved_modules(model: nn.Module, config: RequestMaskConfig) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, module in own_modules(model):
        if isinstance(module, ModulesToSaveWrapper):
            module = module.original_module
        if any(name.endswith(wanted) for wanted in config.modules_to_save or []):  # as PEFT matches them
            tensors.update({f"{_ROOT}model.{name}.{key}": value for key, value in module.state_dict().items()})
    return tensors
