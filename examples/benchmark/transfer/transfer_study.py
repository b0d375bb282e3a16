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
from benchmark.methods import mask_config, method_named
from benchmark.plan.costs import COSTS, Costs
from benchmark.transfer.generators import TransferOptions, transfer_rankers
from benchmark.transfer.measure_transfer import measure_transfer, shared_attributes, transfer_tracks
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES

_LITTLE = 0.1  # share of the steps
_TRACKS = 7


def estimate_transfer(cell: Cell, study: Transfer, costs: Costs = COSTS) -> float:
    """Return the seconds of a cell's work on the target, without its backbone."""
    size = load_data(study.target, cell.protocol).size
    step = costs.step + costs.step_item * size.items
    steps = cell.settings.generator.steps * (_LITTLE + study.full)
    users = min(size.users, cell.settings.max_users or size.users)
    answers = users * _TRACKS * (3 + study.full) * (costs.answer + costs.answer_item * size.items)
    return method_named(cell.method).learns * steps * step + answers


def measure_transfer_cell(
    cell: Cell, study: Transfer, data: LoadedData, backbone: Any, ranker: RequestRanker | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Carry the ranker's masks to the target's own backbone, and measure them there.

    Args:
        cell: The cell.
        study: Its study.
        data: Its data: the source.
        backbone: The target's trained backbone.
        ranker: The ranker, fitted on the source.

    Returns:
        The figures for the cell's JSON file, and "METHOD: track/metric" → (users,).

    Raises:
        ConfigError: If the ranker has no masks.
    """
    config = mask_config(cell.method, replace(cell.settings, encoder=None))  # on the target: the default encoder
    if not isinstance(ranker, MaskRanker) or ranker.masks is None or config is None:
        raise ConfigError(f"transfer: {cell.method!r} trains no masks, and only masks are carried over.")
    target = load_data(study.target, cell.protocol)
    encoder = request_encoder(None, target.catalogue, backbone)
    task = RankerTask(
        backbone, encoder, target.catalogue, target.split, ranker.options(cell.settings.generator), cell.seed
    )
    scorers = transfer_rankers(ranker.masks, task, TransferOptions(config, _LITTLE, study.full))
    setting = Setting(
        target.catalogue,
        target.split.history(study.stage),
        target.split.target(study.stage),
        int(backbone.max_length),
        cell.seed,
        cell.settings.k,
        max_users=cell.settings.max_users,
    )
    tracks = transfer_tracks(setting, data.catalogue, TEST_TEMPLATES)
    values = measure_transfer(scorers, frozen_scorer(backbone), setting, tracks)
    shared, new = shared_attributes(data.catalogue, target.catalogue)
    figures = {
        "users": len(setting.rows()),
        "arms": list(scorers),
        "shared": list(shared),
        "new": list(new),
        "tracks": summarise(values, cell.seed),
    }
    return figures, values
