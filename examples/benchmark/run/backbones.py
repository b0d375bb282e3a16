"""Train the backbones of cells and keep them in the output folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark.cells import Cell, backbone_digest
from benchmark.data import LoadedData, load_data
from cramer_peft.errors import AdapterFileError
from cramer_peft.recsys.backbones import load_backbone, save_backbone
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.devices import fastest_device
from cramer_peft.recsys.training.backbone_training import train_backbone
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
    model = train_backbone(cell.backbone, data.catalogue, data.split, cell.settings.backbone, cell.seed, progress)
    seconds = time.perf_counter() - start
    folder = output / _FOLDER / cell.backbone_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STAMP).unlink(missing_ok=True)  # the stamp is written last: weights without it do not count
    save_backbone(model, folder, data.catalogue)
    write_json(folder / _STAMP, {"digest": backbone_digest(cell, data.digest), "seconds": seconds})
    return seconds


def stored_backbone(cell: Cell, data: LoadedData, output: Path) -> Any:
    """Load the cell's stored backbone onto the fastest device."""
    return load_backbone(output / _FOLDER / cell.backbone_name / BACKBONE_FOLDER, data.catalogue).to(fastest_device())
