"""Measure a cell of the matrix transfer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmark.baselines import MaskRanker, RankerTask, RequestRanker
from benchmark.cells import Cell, Transfer
from benchmark.data import LoadedData, load_data
from benchmark.measures.measure import Setting, frozen_scorer
from benchmark.measures.summary import summarise
from benchmark.methods import method_named
from benchmark.plan.costs import COSTS, Costs, estimate_backbone
from benchmark.transfer.generators import TransferOptions, prepare_transfer
from benchmark.transfer.measure_transfer import (
    measure_transfer,
    shared_attributes,
    stage_targets,
    transfer_tracks,
)
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.evaluation.users import mask_scorer
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, without_cache
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, backbone_options

_TARGET_EPOCHS, _TARGET_PATIENCE = 4, 2  # of the target's items
_LITTLE = 0.1  # share of the steps


def estimate_transfer(cell: Cell, study: Transfer, costs: Costs = COSTS) -> float:
    """Return the seconds of a cell's work on the target."""
    size = load_data(study.target, cell.protocol).size
    whole = replace(cell, settings=replace(cell.settings, backbone=_target_training(cell)))
    step = costs.step + costs.step_item * size.items
    steps = cell.settings.generator.steps * (2 * _LITTLE + study.full)
    users = min(size.users, cell.settings.max_users or size.users)
    answers = users * 5 * (3 + study.full) * (costs.answer + costs.answer_item * size.items)  # five tracks
    epochs = estimate_backbone(whole, size, costs)
    return epochs + method_named(cell.method).learns * steps * step + answers


def measure_transfer_cell(
    cell: Cell, study: Transfer, data: LoadedData, task: RankerTask, ranker: RequestRanker | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Carry the ranker's masks to the target, and measure them there.

    Args:
        cell: The cell.
        study: Its study.
        data: Its data: the source.
        task: The task that the ranker was fitted on.
        ranker: The ranker.

    Returns:
        The figures for the cell's JSON file, and "METHOD: track/metric" → (users,).

    Raises:
        ConfigError: If the ranker has no masks.
    """
    if not isinstance(ranker, MaskRanker) or ranker.masks is None:
        raise ConfigError(f"transfer: {cell.method!r} trains no masks, and only masks are carried over.")
    target = load_data(study.target, cell.protocol)
    reads_catalogue = isinstance(without_cache(task.encoder), CatalogueEncoder)  # then it is made anew for the target
    prepared = prepare_transfer(
        ranker.masks,
        (task.backbone, data.catalogue, data.split),
        (target.catalogue, target.split),
        TransferOptions(ranker.options(task.options), _LITTLE, study.full),
        None if reads_catalogue else task.encoder,
        study.same_items,
        _target_training(cell),
        seed=cell.seed,
    )
    next_items, backbone = stage_targets(target.split, study.stage), prepared.backbone
    setting = Setting(
        target.catalogue,
        target.split.history(study.stage),
        next_items,
        backbone.max_length,
        cell.seed,
        cell.settings.k,
        max_users=cell.settings.max_users,
    )
    tracks = transfer_tracks(target.catalogue, next_items, data.catalogue, TEST_TEMPLATES, cell.seed)
    scorers = {arm: mask_scorer(masks, 1.0) for arm, masks in prepared.rankers.items()}
    values = measure_transfer(scorers, frozen_scorer(backbone), setting, tracks)
    shared, new = shared_attributes(data.catalogue, target.catalogue)
    figures = {
        "users": len(setting.rows()),
        "arms": list(prepared.rankers),
        "alignment": prepared.found,
        "shared": list(shared),
        "new": list(new),
        "tracks": summarise(values, cell.seed),
    }
    return figures, values


def _target_training(cell: Cell) -> BackboneOptions:
    """Return the training of the target's items: few epochs, since they start where their texts put them."""
    own = cell.settings.backbone or backbone_options(cell.backbone)
    return replace(own, epochs=min(own.epochs, _TARGET_EPOCHS), patience=_TARGET_PATIENCE)
