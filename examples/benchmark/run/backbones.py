"""Train the backbones of cells and keep them in the output folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmark.cells import Cell, backbone_digest
from benchmark.data import LoadedData, load_data
from cramer_peft.errors import AdapterFileError, ConfigError
from cramer_peft.recsys.backbones import BACKBONES, SASRec, load_backbone, save_backbone
from cramer_peft.recsys.backbones.bert4rec import BERT4Rec
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.devices import fastest_device
from cramer_peft.recsys.training.backbone_training import backbone_options, fit_backbone, train_backbone
from cramer_peft.storage import read_json, write_json

_FOLDER = "backbones"
_STAMP = "benchmark.json"


def backbone_seconds(cell: Cell, output: Path) -> float | None:
    """Return the seconds that training the cell's stored backbone took; None if it has to be trained."""
    folder = output / _FOLDER / cell.backbone_name
    try:
        stamp = read_json(folder / _STAMP)
    except AdapterFileError:
        return None
    digest = backbone_digest(cell, load_data(cell.source, cell.protocol).digest)
    return float(stamp["seconds"]) if stamp.get("digest") == digest else None


def prepare_backbone(cell: Cell, output: Path, progress: bool = False) -> float:
    """Train and store the cell's backbone unless it is stored; return the seconds that its training took."""
    known = backbone_seconds(cell, output)
    if known is not None:
        return known
    data = load_data(cell.source, cell.protocol)
    start = time.perf_counter()
    model = _trained(cell, data, progress)
    seconds = time.perf_counter() - start
    folder = output / _FOLDER / cell.backbone_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STAMP).unlink(missing_ok=True)  # the stamp is written last: weights without it do not count
    save_backbone(model, folder, data.catalogue)
    write_json(folder / _STAMP, {"digest": backbone_digest(cell, data.digest), "seconds": seconds})
    return seconds


def _trained(cell: Cell, data: LoadedData, progress: bool) -> Any:
    """Train the cell's backbone, with as many layers as the cell says.

    Raises:
        ConfigError: If the backbone is no transformer of transformers' kind, whose layers can be counted.
    """
    options, layers = cell.settings.backbone or backbone_options(cell.backbone), cell.settings.layers
    if layers is None:
        return train_backbone(cell.backbone, data.catalogue, data.split, options, cell.seed, progress)
    kind = BACKBONES[cell.backbone]
    if kind not in (SASRec, BERT4Rec):
        raise ConfigError(f"layers: found {layers} for {cell.backbone}, expected sasrec or bert4rec. Leave it out.")
    torch.manual_seed(cell.seed)
    config = kind.configure(len(data.catalogue), max_length=options.max_length, dropout=options.dropout)
    config.num_hidden_layers = layers
    model = kind(config)
    fit_backbone(model, data.split, options, cell.seed, progress)
    return model.requires_grad_(False)


def stored_backbone(cell: Cell, data: LoadedData, output: Path) -> Any:
    """Load the cell's stored backbone onto the fastest device."""
    return load_backbone(output / _FOLDER / cell.backbone_name / BACKBONE_FOLDER, data.catalogue).to(fastest_device())
