"""Puts masks on a model, or loads them from files."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import ConfigError
from cramer_peft.model import RequestMaskModel
from cramer_peft.storage.adapter_files import check_fits, read_adapter
from cramer_peft.storage.hub import ADAPTER_FILES, find_folder


def inject_request_masks(
    model: nn.Module,
    config: RequestMaskConfig,
    adapter_name: str = "default",
    encoder: RequestEncoder | None = None,
) -> RequestMaskModel:
    """Wrap the configured modules of ``model`` in place, and freeze the rest.

    Args:
        model: Any module. Nothing of it is touched if the configuration does not fit.
        config: The modules to mask and how. It is copied; the copy, with fields filled in from the model,
            is ``masks.peft_config[adapter_name]``.
        adapter_name: Name of the adapter.
        encoder: An encoder object, in place of the one that ``config`` names.

    Returns:
        The handle that owns the generator: train, move, save and unload through it.

    Raises:
        TargetModuleError: If no module matches, or one cannot be masked.
        ConfigError: If ``model`` has request masks already, or an argument is of another type.
        EncoderError: If the encoder is unknown, or not as wide as ``config.request_dim``.
        MissingExtraError: If the encoder's package is not installed.
    """
    if isinstance(model, RequestMaskModel):
        raise ConfigError("this is a handle already: call its add_adapter(name, config).")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    if not isinstance(config, RequestMaskConfig):
        raise ConfigError(f"config must be a RequestMaskConfig, found {type(config).__name__}.")
    return RequestMaskModel(model, config.copy(), adapter_name, encoder=encoder)


def load_request_masks(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    encoder: RequestEncoder | None = None,
    check_base: bool = True,
    is_trainable: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = True,
) -> RequestMaskModel:
    """Put a saved adapter on ``model``; everything is checked before anything is touched.

    Args:
        model: The base model that the adapter was made for, without masks.
        folder: Folder that ``save_pretrained`` wrote: ``adapter_config.json`` and ``adapter_model.safetensors``. If
            there is none: a name on the hub, ``"user/name"``, whose files lie in the hub's cache on this machine.
        adapter_name: Name that the adapter gets here.
        encoder: An encoder object, if the adapter's is not a registered one.
        check_base: Check that the fingerprint of the masked weights matches.
        is_trainable: True to train the generator further.
        revision: Branch, tag or commit on the hub.
        subfolder: A folder inside ``folder``.
        local_files_only: False to download from the hub what the cache does not have.

    Raises:
        AdapterFileError: If a file is missing, corrupt, or does not fit; it lists what differs.
        BaseModelMismatchError: If the adapter was made for other modules or weights.
        DownloadError: If the hub does not give the files.
        EncoderError: If the adapter was made with another encoder.
    """
    found = find_folder(folder, ADAPTER_FILES, revision, subfolder, local_files_only)
    stored = read_adapter(found, check_base=check_base, is_trainable=is_trainable)
    check_fits(stored, model, encoder)
    masks = RequestMaskModel(model, stored.config, adapter_name, encoder=encoder)
    try:
        masks.adapter(adapter_name).fill(stored)
        if not is_trainable:
            masks.set_requires_grad(adapter_name, requires_grad=False)
    except BaseException:
        masks.unload()
        raise
    return masks
