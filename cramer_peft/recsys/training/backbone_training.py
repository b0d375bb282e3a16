"""Trains any of the backbones by name."""

from __future__ import annotations

from typing import Any

import torch

from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.training.generator_training import BackboneOptions, fit_backbone
from cramer_peft.training import Checkpoints

EXPANDED_POSITIONS = 2  # of a generator's training, where each position costs a row of its own
# BERT4Rec learns from the few items that it hides, so it needs more epochs.
_OPTIONS = {"bert4rec": BackboneOptions(epochs=60, patience=10)}


def backbone_options(name: str) -> BackboneOptions:
    """How a backbone is trained unless told otherwise."""
    return _OPTIONS.get(name, BackboneOptions())


def train_backbone(
    name: str,
    catalogue: Catalogue,
    split: Split,
    options: BackboneOptions | None = None,
    seed: int = 0,
    progress: bool = True,
    negatives: int | None = None,
    checkpoints: Checkpoints | None = None,
) -> Any:
    """Train a backbone on the training items of a split; the epoch that validates best is returned.

    For ``"sasrec"`` it is what :func:`~cramer_peft.recsys.training.generator_training.train_sasrec` does.

    Args:
        name: A key of :data:`~cramer_peft.recsys.backbones.BACKBONES`.
        catalogue: The items.
        split: Histories and validation targets; the test targets are not looked at.
        options: How to train; None: what :func:`backbone_options` says.
        seed: Of initialisation, order, dropout and, in BERT4Rec, of what is hidden.
        progress: Whether to show a progress bar.
        negatives: Train on samples of the catalogue of this size; None: as its size asks for
            (:func:`~cramer_peft.recsys.training.generator_training.fit_backbone`).
        checkpoints: Where each epoch's state is kept, to go on from after a kill; None: nowhere.

    Returns:
        A :class:`~cramer_peft.recsys.backbones.Backbone`, on the CPU, in eval mode and frozen.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If there is no such backbone, or it cannot be trained on samples or by that loss, or there are
            checkpoints that are not to be resumed, or of other settings.
        DataError: If there is nothing to train on.
        MissingExtraError: If the backbone's package is not installed.
    """
    options = options or backbone_options(name)
    torch.manual_seed(seed)
    model = make_backbone(name, len(catalogue), max_length=options.max_length, dropout=options.dropout)
    fit_backbone(model, split, options, seed, progress, negatives, checkpoints)
    # torch runs a GRU by another kernel where weights need gradients: frozen now, the scores stay the same bit for bit
    # when masks freeze them
    return model.requires_grad_(False)
