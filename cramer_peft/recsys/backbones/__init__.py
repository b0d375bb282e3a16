"""Sequential recommenders to adapt, all behind one interface, :class:`Backbone`."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones.backbone import (
    PADDING,
    Backbone,
    StoredBackbone,
    config_for,
    read_config,
    set_constant_bias,
)
from cramer_peft.recsys.backbones.bert4rec import BERT4Rec
from cramer_peft.recsys.backbones.gru4rec import GRU4Rec
from cramer_peft.recsys.backbones.replay import ReplaySASRec
from cramer_peft.recsys.backbones.sasrec import SASRec

BACKBONES: dict[str, type[Any]] = {kind.name: kind for kind in (SASRec, BERT4Rec, GRU4Rec, ReplaySASRec)}

__all__ = [
    "BACKBONES",
    "PADDING",
    "BERT4Rec",
    "Backbone",
    "GRU4Rec",
    "ReplaySASRec",
    "SASRec",
    "StoredBackbone",
    "config_for",
    "make_backbone",
    "read_config",
    "set_constant_bias",
]


def make_backbone(name: str, num_items: int, **sizes: Any) -> nn.Module:
    """An untrained backbone.

    Args:
        name: A key of ``BACKBONES``.
        num_items: Number of items.
        **sizes: ``max_length``, ``dropout`` and ``hidden_size``, where the defaults do not suit.

    Raises:
        ConfigError: If there is no such backbone.
        MissingExtraError: If its package is not installed.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"backbone: found {name!r}, expected one of {', '.join(BACKBONES)}.{hint}")
    kind = BACKBONES[name]
    configure = getattr(kind, "configure", None)
    model: nn.Module = kind(configure(num_items, **sizes)) if configure else kind(num_items, **sizes)
    return model
