"""A recommender's folder: the names in it, its card and what its training wrote down."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.own_data import Columns
from cramer_peft.recsys.reading import read_object

ADAPTER_FOLDER, TRAINING_FILE, EVALUATION_FILE = "adapter", "training.json", "evaluation.json"
CARD_FILE = "README.md"
MAX_JSON_BYTES = 1 << 20


def keep_card(folder: Path, new: Path) -> None:
    """Copy the README.md beside an adapter to a folder for a new version, so that a text of the user's stays."""
    card = folder / ADAPTER_FOLDER / CARD_FILE
    if card.is_file():
        (new / ADAPTER_FOLDER).mkdir(parents=True)
        shutil.copyfile(card, new / ADAPTER_FOLDER / CARD_FILE)


def read_training(root: Path) -> dict[str, Any]:
    """Return the options of a training. The demo writes none, and splits by leave-one-out."""
    path = root / TRAINING_FILE
    if not path.exists():
        return {"protocol": "leave-one-out"}
    options = read_object(path, "the results of a training", MAX_JSON_BYTES).get("options")
    if not isinstance(options, dict):
        raise DataError(f"{path}: expected the options of a training. Train again, or remove the file.")
    return options


def trained_columns(given: Columns | None, trained: dict[str, Any], root: Path) -> Columns:
    """Return what to read: as given, or else as in training, and in any case by the training's ``min_rating``."""
    try:
        used = Columns(**trained.get("columns", {}))
    except TypeError as error:
        raise DataError(f"{root / TRAINING_FILE}: columns: {error}. Train again, or remove the file.") from error
    if given is not None and given.min_rating not in (None, used.min_rating):
        raise DataError(
            f"{root} was trained with min_rating={used.min_rating}, found {given.min_rating}: other interactions would "
            "be the targets, and the training may have seen them. Leave min_rating out, or train with it."
        )
    return used if given is None else replace(given, min_rating=used.min_rating)
