"""Variants of our method: ablations, which change one setting, and hold-outs, which keep something from training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark.cells import CellSettings, HoldOut
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import BACKBONES, SASRec, config_for

_SASREC = frozenset({"sasrec"})
_SCORES = {"target_outputs": config_for(SASRec).target_outputs, "row_features": [""]}  # the default, of SASRec


@dataclass(frozen=True)
class Ablation:
    """One change to our method.

    Attributes:
        config: Fields of the configuration that change.
        generator: Fields of the generator's options that change.
        encoder: Another request encoder.
        backbones: The only backbones that have the modules it names; None: any.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generator: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    backbones: frozenset[str] | None = None


INSIDE_TOO, INSIDE_INSTEAD = "masks inside too", "masks inside instead"  # named for SASRec; others: see ablation_on
ABLATIONS: dict[str, Ablation] = {
    "a free gate for each item": Ablation({"target_modules": ["head"]}, backbones=_SASREC | {"gru4rec"}),
    INSIDE_TOO: Ablation({"target_modules": SASRec.default_targets, **_SCORES}),
    INSIDE_INSTEAD: Ablation({"target_modules": SASRec.default_targets}),
    "masks inside instead, low_rank": Ablation({"target_modules": SASRec.default_targets, "gate": "low_rank"}),
    "all linear layers": Ablation({"target_modules": r".*dense|.*(query|key|value)|head"}, backbones=_SASREC),
    "last block's masks instead": Ablation(
        {"target_modules": r".*layer\.1\.(attention\.output|intermediate|output)\.dense"},
        backbones=_SASREC | {"bert4rec"},
    ),
    "no hidden layer": Ablation({"generator_width": None}),
    "no minimal-edit loss": Ablation(generator={"edit_weight": 0.0, "next_item_weight": 1.0}),
    "no next-item loss": Ablation(generator={"next_item_weight": 0.0}),
    "true requests only": Ablation(generator={"random_share": 0.0, "empty_share": 0.0}),
    "no empty requests": Ablation(generator={"empty_share": 0.0}),
    "kappa 8": Ablation(generator={"kappa": 8.0}),
    "kappa 16": Ablation(generator={"kappa": 16.0}),
    "against drawn evenly": Ablation(generator={"against_by_frequency": False}),
    "no concepts": Ablation(generator={"concept_share": 0.0}),
    "concepts to the end": Ablation(generator={"concept_share": 0.25, "concept_until": 1.0}),
    "encoder wordllama": Ablation(encoder="wordllama"),
    "encoder request-reader": Ablation(encoder="request-reader"),
    "encoder MiniLM": Ablation(encoder="all-minilm-l6-v2"),
}
HOLD_OUTS: dict[str, HoldOut] = {"unseen attributes": "attributes", "unseen users": "users"}


def ablation_on(variant: str, backbone: str) -> Ablation:
    """Return an ablation with the module names of a backbone.

    Args:
        variant: A key of ``ABLATIONS``.
        backbone: Name of the backbone.
    """
    ablation, kind = ABLATIONS[variant], BACKBONES.get(backbone)
    if backbone in _SASREC or kind is None or "target_modules" not in ablation.config or ablation.backbones is not None:
        return ablation
    own: dict[str, Any] = {"target_modules": kind.default_targets, "module_parts": kind.default_parts}
    if "target_outputs" in ablation.config:
        own["target_outputs"] = config_for(kind).target_outputs
    if kind.expands_positions:
        own["batch_folding"] = "rows_first"
    return replace(ablation, config={**ablation.config, **own})


def varied_settings(variant: str, settings: CellSettings, backbone: str) -> CellSettings:
    """Return the settings of a variant.

    Args:
        variant: A key of ``ABLATIONS`` or of ``HOLD_OUTS``.
        settings: Settings of our method as it is.
        backbone: Name of the backbone.

    Raises:
        ConfigError: If there is no such variant.
    """
    if variant in HOLD_OUTS:
        return replace(settings, hold_out=HOLD_OUTS[variant])
    if variant not in ABLATIONS:
        names = ", ".join(map(repr, (*ABLATIONS, *HOLD_OUTS)))
        raise ConfigError(f"variant: found {variant!r}, expected one of {names}.")
    ablation = ablation_on(variant, backbone)
    return replace(
        settings,
        config={**settings.config, **ablation.config},
        generator=replace(settings.generator, **ablation.generator),
        encoder=ablation.encoder or settings.encoder,
    )
