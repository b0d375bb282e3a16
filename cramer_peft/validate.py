"""A look at what injecting a configuration into a model would meet; nothing is touched."""

from __future__ import annotations

import dataclasses

from torch import nn

from cramer_peft.adapter_files import check_encoder_weights
from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, RequestEncoder, TunedEncoder, make_encoder
from cramer_peft.errors import BaseModelMismatchError, ConfigError, CramerError, TargetModuleError
from cramer_peft.findings import Finding, FindingKind
from cramer_peft.layers.registry import wrapper_for
from cramer_peft.leftovers import masked_layers
from cramer_peft.merging import shared_storages
from cramer_peft.targets import InjectionPlan, Target, plan_injection


def validate(model: nn.Module, config: RequestMaskConfig, encoder: RequestEncoder | None = None) -> list[Finding]:
    """Say what :func:`cramer_peft.inject_request_masks` would meet, without touching anything.

    Args:
        model: The model to mask.
        config: What to mask and how.
        encoder: An encoder object, in place of the one that ``config`` names.

    Returns:
        The findings, the fatal ones first; injection raises if and only if one is fatal, but that an encoder
        which injection itself does not need, as ``request_dim`` is given, is first missed at a text. An empty
        list is a model and a configuration of which there is nothing to say.

    Raises:
        ConfigError: If ``config`` is no :class:`RequestMaskConfig`.
    """
    if not isinstance(config, RequestMaskConfig):
        raise ConfigError(f"config must be a RequestMaskConfig, found {type(config).__name__}.")
    config = config.as_given()  # as injection does with one that serves another model already
    if any(True for _ in masked_layers(model)):
        return [
            Finding(
                FindingKind.ALREADY_MASKED,
                f"{type(model).__name__} has request masks already: add_adapter on its handle, or unload() first.",
            )
        ]
    findings = _encoder_findings(config, encoder)
    try:
        plan = plan_injection(model, config)
    except TargetModuleError as error:
        found = error.findings or (Finding(FindingKind.UNSUPPORTED_MODULE, str(error)),)
        return [*found, *findings]
    except BaseModelMismatchError as error:
        return [Finding(FindingKind.OTHER_BASE_MODEL, str(error)), *findings]
    return findings + _notes(model, plan)


def _encoder_findings(config: RequestMaskConfig, encoder: RequestEncoder | None) -> list[Finding]:
    try:
        if encoder is None and config.encoder is not None:
            encoder = make_encoder(config.encoder, config.encoder_options)
        encoder = None if encoder is None else CachedEncoder(encoder).encoder  # raises where it is none
        if encoder is not None and config.request_dim not in (None, encoder.dim):
            message = (
                f"request encoder {encoder.name!r} makes vectors of width {encoder.dim}, not {config.request_dim}."
            )
            return [Finding(FindingKind.ENCODER, message)]
        if encoder is not None:
            _try_encoder(config, encoder)
    except CramerError as error:
        return [Finding(FindingKind.ENCODER, str(error))]
    return []


def _try_encoder(config: RequestMaskConfig, encoder: RequestEncoder) -> None:
    """Do what injection does with an encoder."""
    dataclasses.replace(config, request_dim=encoder.dim)  # raises where the stored default request is not as wide
    if config.encoder_tuning != "none":
        TunedEncoder(encoder, config.encoder_tuning)
        check_encoder_weights(config, encoder)
    if isinstance(config.default_request, str):
        CachedEncoder(encoder).encode([config.default_request])


def _notes(model: nn.Module, plan: InjectionPlan) -> list[Finding]:
    modules = dict(model.named_modules())
    shared = shared_storages(model)
    notes: list[Finding] = []
    for target in plan.targets:
        notes += _tied(target, shared)
        notes += _rows(target, plan.config)
        wrapper = wrapper_for(target.module)
        kept = [part for part in target.parts if wrapper is not None and part in wrapper.unfoldable_parts()]
        if kept:
            message = f"the gates of {kept} have no place in a weight: merging leaves them to be multiplied."
            notes.append(Finding(FindingKind.NOT_MERGEABLE, message, target.name))
        if any(isinstance(modules.get(name), nn.TransformerEncoderLayer) for name in _ancestors(target.name)):
            message = "calls with a request take torch's unfused path here; the two differ by float rounding."
            notes.append(Finding(FindingKind.FUSED_PATH, message, target.name))
    if getattr(model, "is_gradient_checkpointing", False):
        message = "training needs use_reentrant=False and context_fn=masks.checkpoint_contexts, or is refused."
        notes.append(Finding(FindingKind.GRADIENT_CHECKPOINTING, message))
    return notes


def _ancestors(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(len(pieces))]


def _tied(target: Target, shared: set[int]) -> list[Finding]:
    storages = {p.untyped_storage().data_ptr() for p in target.module.parameters() if not p.is_meta}
    if not storages & shared:
        return []
    message = "shares a weight with another module: masks act on this one alone, and merging is refused."
    return [Finding(FindingKind.TIED_WEIGHTS, message, target.name)]


def _rows(target: Target, config: RequestMaskConfig) -> list[Finding]:
    batch_first = getattr(target.module, "batch_first", None)
    if batch_first is None or config.batch_dim == (0 if batch_first else 1):
        return []
    message = f"its rows are in dimension {0 if batch_first else 1}, by its own batch_first={batch_first}."
    return [Finding(FindingKind.ROWS_ELSEWHERE, message, target.name)]
