"""The settings that the paper varies, one at a time, and the hold-outs of the study of stated requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmark.cells import CellSettings, HoldOut
from cramer_peft.errors import ConfigError

_FFN = r".*(intermediate|layer\.[0-9]+\.output)\.dense"
_W_O = r".*attention\.output\.dense"


@dataclass(frozen=True)
class PaperVariant:
    """One change to the paper's method.

    Attributes:
        study: What is varied.
        value: Its value.
        config: Fields of the masks' configuration that change.
        sparsity: Weight of the sparsity loss; None: the default.
        layers: Layers of the backbone; None: the default.
    """

    study: str
    value: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sparsity: float | None = None
    layers: int | None = None

    @property
    def name(self) -> str:
        """The name of the variant."""
        return f"{self.study} {self.value}"


_ALL = (
    *(PaperVariant("drop ratio", f"{rho:g}", {"drop_ratio": rho}) for rho in (0.05, 0.15, 0.2)),
    *(PaperVariant("sparsity", f"{weight:g}", sparsity=weight) for weight in (0.1, 0.2, 0.4, 0.5)),
    PaperVariant("scope", "FFN", {"target_modules": _FFN}),
    PaperVariant("scope", "W_O", {"target_modules": _W_O}),
    *(PaperVariant("tuning", regime, {"encoder_tuning": regime}) for regime in ("last", "all")),
    PaperVariant("masks", "shared", {"shared_masks": True}),
    *(PaperVariant("schedule", kind, {"temperature_schedule": kind}) for kind in ("linear", "exponential")),
    *(PaperVariant("layers", str(layers), layers=layers) for layers in (4, 6, 8, 10)),
)
PAPER_VARIANTS = {variant.name: variant for variant in _ALL}
# What the method as it is has in each study.
DEFAULTS = {
    "drop ratio": "0.1",
    "sparsity": "0.3",
    "scope": "both",
    "tuning": "none",
    "masks": "own",
    "schedule": "cosine",
    "layers": "2",
}
STATED_HOLD_OUTS: dict[str, HoldOut] = {"unseen users": "users", "unseen texts": "texts"}


def paper_settings(name: str, settings: CellSettings) -> CellSettings:
    """Return the settings of a variant of the paper's method.

    Raises:
        ConfigError: If there is no such variant.
    """
    if name not in PAPER_VARIANTS:
        names = ", ".join(map(repr, PAPER_VARIANTS))
        raise ConfigError(f"variant: found {name!r}, expected one of {names}.")
    variant = PAPER_VARIANTS[name]
    generator = settings.generator
    if variant.sparsity is not None:
        generator = replace(generator, sparsity_weight=variant.sparsity)
    return replace(
        settings,
        config={**settings.config, **variant.config},
        generator=generator,
        layers=variant.layers if variant.layers is not None else settings.layers,
    )
