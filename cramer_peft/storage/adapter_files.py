"""An adapter's two files: ``adapter_config.json`` and ``adapter_model.safetensors``.

The keys are those that PEFT's own ``save_pretrained`` writes, so that PEFT and this library read each other's files.
The reader here is strict: it checks everything against the model before it touches the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import RequestEncoder, is_registered, make_encoder, tuned_shapes
from cramer_peft.errors import (
    AdapterFileError,
    BaseModelMismatchError,
    EncoderError,
    TargetModuleError,
    UnsupportedError,
)
from cramer_peft.generator import make_generator
from cramer_peft.injection.fingerprint import module_fingerprint
from cramer_peft.injection.plan import own_modules, plan_injection
from cramer_peft.injection.row_features import check_same
from cramer_peft.storage.files import (
    CONFIG_NAME,
    MAX_HEADER_BYTES,
    WEIGHTS_NAME,
    TensorInfo,
    check_finite,
    check_inside,
    json_bytes,
    open_regular,
    read_json,
    read_layout,
    read_safetensors,
    safetensors_bytes,
    write_together,
)
from cramer_peft.storage.stored_config import (
    check_encoder_options,
    config_digest,
    match_by_list,
    parse_config,
    short,
)

_ROOT = "base_model."
_GENERATOR = "request_mask_generator."
_ENCODER = "request_mask_encoder."
_WIDEST = 8  # bytes of a number, in float64

# Fields that decide shapes, the compiled graph or the meaning of request vectors.
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
    "target_outputs",
    "row_features",
    "request_sides",
    "modules_to_save",
)


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as read from its files, not yet attached to a model."""

    folder: Path
    config: RequestMaskConfig
    weights_bytes: int
    config_digest: str

    @cached_property
    def layout(self) -> dict[str, TensorInfo]:
        """Shape and dtype of each weight by key, from the header of its file."""
        return read_layout(self.folder / WEIGHTS_NAME)[0]

    @cached_property
    def weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The weights and their metadata, read when first needed, which is after their layout was checked."""
        return read_safetensors(self.folder / WEIGHTS_NAME)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights, by key."""
        return self.weights[0]

    def generator_tensors(self) -> dict[str, Tensor]:
        """Return the generator's state."""
        return self._below(_ROOT + _GENERATOR)

    def encoder_tensors(self) -> dict[str, Tensor]:
        """Return the tuned encoder's state."""
        return self._below(_ROOT + _ENCODER)

    def module_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the state of a module in ``modules_to_save``, by its name on the handle."""
        return self._below(f"{_ROOT}{name}.")

    def _below(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def without_adapter_name(key: str, adapter_name: str) -> str:
    """Return the key in the file, without the adapter's name, for a key of the generator or tuned encoder."""
    pattern = rf"(^|\.)({re.escape(_GENERATOR)}|{re.escape(_ENCODER)}){re.escape(adapter_name)}\."
    return re.sub(pattern, r"\1\2", key, count=1)


def is_generator_key(key: str, adapter_name: str) -> bool:
    """Return True for the model's own key of a tensor of the adapter's generator or tuned encoder."""
    return any(f".{prefix}{adapter_name}." in f".{key}" for prefix in (_GENERATOR, _ENCODER))


def keys_of_adapter(state: Mapping[str, Tensor], adapter_name: str) -> dict[str, Tensor]:
    """Return the part of a model's state that belongs to one adapter, its ``modules_to_save`` included."""
    saved = f".modules_to_save.{adapter_name}."
    return {key: value for key, value in state.items() if saved in key or is_generator_key(key, adapter_name)}


def adapter_tensors(
    generator: nn.Module, tuned: nn.Module | None, saved_modules: Sequence[tuple[str, nn.Module]]
) -> dict[str, Tensor]:
    """Return an adapter's tensors by their keys in the file, which are those of PEFT's own ``save_pretrained``."""
    owners = [(_GENERATOR, generator), *([] if tuned is None else [(_ENCODER, tuned)])]
    owners += [(f"{name}.", module) for name, module in saved_modules]
    tensors = {f"{_ROOT}{prefix}{key}": value for prefix, owner in owners for key, value in owner.state_dict().items()}
    sharded = [key for key, value in tensors.items() if isinstance(value, DTensor)]
    if sharded:
        raise UnsupportedError(
            f"{len(sharded)} tensors of the adapter are sharded (DTensor), for example {sharded[0]!r}. Gather them on "
            "every process by torch.distributed.checkpoint.state_dict.get_model_state_dict(masks, "
            "options=StateDictOptions(full_state_dict=True)), load them into a handle that is not sharded, and save it."
        )
    return tensors


def save_adapter(folder: Path, adapter_name: str, config: RequestMaskConfig, tensors: dict[str, Tensor]) -> None:
    """Write one adapter's files, both or none; ``tensors`` are by key, see :func:`adapter_tensors`."""
    values = {**config.to_dict(), "inference_mode": True}
    metadata = {
        "adapter": adapter_name,
        "base_fingerprint": config.base_fingerprint or "",
        "config_digest": config_digest(values),
    }
    weights = safetensors_bytes(tensors, metadata)
    write_together({folder / CONFIG_NAME: json_bytes(values), folder / WEIGHTS_NAME: weights})


def read_adapter(folder: Path, check_base: bool, is_trainable: bool) -> StoredAdapter:
    """Read an adapter's files, without a model."""
    path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    check_inside(folder, path)
    values = read_json(path)
    config = parse_config(path, values)
    config = config.with_values(inference_mode=not is_trainable)
    if not check_base:
        config.base_fingerprint = config.row_fingerprints = None
    check_inside(folder, weights)
    with open_regular(weights, "a safetensors file") as (_, size):
        return StoredAdapter(folder, config, size, config_digest(values))


def check_fits(stored: StoredAdapter, model: nn.Module, encoder: RequestEncoder | None) -> None:
    """Check a stored adapter against a model and an encoder, without touching either."""
    config = stored.config
    _check_encoder(config, encoder)
    try:
        match_by_list(config, model)
        plan = plan_injection(model, config)
    except (TargetModuleError, BaseModelMismatchError) as error:
        other = "it was made for other modules than this model has: " if isinstance(error, TargetModuleError) else ""
        raise BaseModelMismatchError(f"{stored.folder / CONFIG_NAME}: {other}{error}") from error
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
    used = encoder if encoder is not None else make_encoder(str(config.encoder), config.encoder_options)
    shapes = tuned_shapes(used, config.encoder_tuning)
    check_encoder_weights(config, used)
    return {f"{_ROOT}{_ENCODER}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}


def check_encoder_weights(config: RequestMaskConfig, encoder: RequestEncoder) -> None:
    """Check that an encoder has the parameters from which a stored adapter tuned its own."""
    found = encoder_fingerprint(encoder)
    if config.encoder_fingerprint not in (None, found):
        raise EncoderError(
            f"the adapter tuned parts of a request encoder {encoder.name!r} with other parameters: it expects "
            f"{config.encoder_fingerprint}, found {found}. Give the encoder that it was trained with."
        )


def encoder_fingerprint(encoder: RequestEncoder) -> str | None:
    """Return a digest of an encoder's parameters; None if it has no module."""
    module = getattr(encoder, "module", None)
    return module_fingerprint(module) if isinstance(module, nn.Module) else None


def _check_weights(stored: StoredAdapter, expected: dict[str, Tensor]) -> None:
    path = stored.folder / WEIGHTS_NAME
    # The size first and then the header, so that nothing larger than what is expected is mapped or read.
    most = MAX_HEADER_BYTES + sum(value.numel() * _WIDEST for value in expected.values())
    if stored.weights_bytes > most:
        raise AdapterFileError(
            f"{path} does not fit its configuration: it has {stored.weights_bytes} bytes, which is larger than "
            f"the {most} bytes that its tensors can take."
        )
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
    """Check an adapter's tensors, by the model's own keys, just before PEFT's own loading copies them."""
    expected = {key: value for key, value in model.state_dict().items() if is_generator_key(key, adapter_name)}
    ours = {key: value for key, value in tensors.items() if _GENERATOR in key or _ENCODER in key}
    problems = _differences(expected, ours)
    if problems:
        raise AdapterFileError(f"the file does not fit the adapter {adapter_name!r}: {problems}.")
    check_finite(tensors, f"the file of adapter {adapter_name!r}")


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, TensorInfo | Tensor]) -> str:
    """Describe keys that are missing, unexpected, or of another shape or kind of number; "" if all fit."""
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


def check_same_form(stored: StoredAdapter, current: RequestMaskConfig, adapter_name: str) -> None:
    """Check that a stored adapter's values can replace those of an adapter in use."""
    found = stored.config
    differing = [name for name in _SAME if _plain(getattr(found, name)) != _plain(getattr(current, name))]
    if differing:
        listed = "; ".join(_difference(name, found, current) for name in differing)
        raise AdapterFileError(
            f"{stored.folder} cannot be swapped in for adapter {adapter_name!r}: {listed}. Add it beside the other by "
            "load_adapter(folder, name), or swap in one of the same form."
        )
    own = current.row_fingerprints or {}
    for entry, known in (found.row_fingerprints or {}).items():
        if entry in own:
            check_same(entry, own[entry], known)


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
