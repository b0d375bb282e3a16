"""The kinds of backbones by name: how one is made, saved and loaded."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cramer_peft.encoders import no_file_bars
from cramer_peft.errors import ConfigError, DataError, MissingExtraError
from cramer_peft.recsys.backbones.backbone import Backbone
from cramer_peft.recsys.backbones.bert4rec import BERT4Rec
from cramer_peft.recsys.backbones.bert_files import read_bert
from cramer_peft.recsys.backbones.gru4rec import GRU4Rec
from cramer_peft.recsys.backbones.replay import ReplaySASRec
from cramer_peft.recsys.backbones.sasrec import SASRec
from cramer_peft.recsys.backbones.stored import StoredBackbone, read_config
from cramer_peft.recsys.backbones.weights import WEIGHT_NAMES
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE, Catalogue
from cramer_peft.recsys.data.catalogue_digest import DIGEST_FILE, check_digest, write_digest
from cramer_peft.recsys.reading import as_path
from cramer_peft.storage import new_version

BACKBONES: dict[str, type[Any]] = {kind.name: kind for kind in (SASRec, BERT4Rec, GRU4Rec, ReplaySASRec)}
BACKBONE_FOLDER = "backbone"  # inside a recommender's folder


def make_backbone(name: str, num_items: int, **sizes: Any) -> nn.Module:
    """Make an untrained backbone by its name in ``BACKBONES``.

    ``sizes`` are ``max_length``, ``dropout`` and ``hidden_size``, to replace the defaults.

    Raises:
        ConfigError: If there is no such backbone.
        MissingExtraError: If its package is not installed.
    """
    check_backbone_name(name)
    kind = BACKBONES[name]
    configure = getattr(kind, "configure", None)
    model: nn.Module = kind(configure(num_items, **sizes)) if configure else kind(num_items, **sizes)
    return model


def check_backbone_name(name: str) -> None:
    """Raise a ConfigError if no backbone has a name."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"backbone: found {name!r}, expected one of {', '.join(BACKBONES)}.{hint}")


def save_backbone(backbone: Backbone, folder: str | os.PathLike[str], catalogue: Catalogue | None = None) -> None:
    """Write a frozen backbone into the recommender folder ``folder``; call it before masks are injected.

    With the ``catalogue`` that it was trained on, loading it for another one is refused. An error leaves a backbone
    that is there as it was.
    """
    stale = rf"{BACKBONE_FOLDER}/({WEIGHT_NAMES}|{re.escape(DIGEST_FILE)})"  # the digest of another backbone
    with new_version(as_path(folder), stale) as new:
        with no_file_bars():
            backbone.save_pretrained(new / BACKBONE_FOLDER)
        if catalogue is not None:
            write_digest(new / BACKBONE_FOLDER, catalogue, content=False)


def load_checkpoint(folder: str | os.PathLike[str], catalogue: Catalogue) -> Any:
    """Load a backbone as :func:`load_backbone`, from its folder or from a recommender's folder around it."""
    inner = as_path(folder) / BACKBONE_FOLDER
    return load_backbone(inner if inner.is_dir() else folder, catalogue)


def load_backbone(folder: str | os.PathLike[str], catalogue: Catalogue) -> Any:
    """Load a frozen :class:`Backbone` of any kind, in eval mode, from the folder ``backbone`` of a recommender.

    Raises:
        DataError: If the folder holds no complete backbone, or one that was trained on another catalogue.
        MissingExtraError: If the backbone's package is not installed.
    """
    folder = as_path(folder)
    try:
        if not folder.is_dir():
            raise NotADirectoryError("it is not a folder.")
        kind = _kind(folder)
        backbone = kind.from_pretrained(folder) if issubclass(kind, StoredBackbone) else read_bert(kind, folder)
    except MissingExtraError:
        raise
    except Exception as error:  # torch and transformers raise anything over values that they do not expect
        raise DataError(
            f"{folder} holds no readable backbone: {error} Give the folder {BACKBONE_FOLDER!r} that "
            "`cramer-peft train` or `cramer-peft demo` wrote."
        ) from error
    if backbone.num_items != len(catalogue):
        raise DataError(f"{folder}: the backbone knows {backbone.num_items} items, the catalogue has {len(catalogue)}.")
    inside = folder.absolute().name == BACKBONE_FOLDER
    check_digest(folder, catalogue, folder.absolute().parent / CATALOGUE_FILE if inside else None)
    for name, parameter in backbone.named_parameters():
        # Mapped weights lie unaligned, and kernels then differ in the last bit.
        parameter.data = parameter.data.clone()
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(f"{folder}: the weight {name!r} holds NaN or infinity. Train the backbone again.")
    return backbone.eval().requires_grad_(False)


def _kind(folder: Path) -> type[Any]:
    """Return the class of the backbone in a folder, by the name in its configuration."""
    name = read_config(folder)["architectures"][0]
    kinds = {kind.__name__: kind for kind in BACKBONES.values()}
    if name not in kinds:
        raise DataError(f"its architecture is {name[:100]!r}, expected one of {', '.join(kinds)}.")
    return kinds[name]
