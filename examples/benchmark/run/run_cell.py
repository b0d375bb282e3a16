"""Run one cell: train its method, measure it, write the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmark.baselines import MaskRanker, OracleFilter, RankerTask, RequestRanker
from benchmark.cell_files import CellResult
from benchmark.cells import Cell, cell_digest
from benchmark.data import LoadedData, load_data
from benchmark.measures.measure import Setting, StrengthScorer, frozen_scorer, make_tracks, measure
from benchmark.measures.tracks import HELD_OUT, hold_out, taught_split
from benchmark.methods import Method, encoder_of, mask_config, mask_config_on, method_named, not_on
from benchmark.own_requests.request_data import stated_visits
from benchmark.run.backbones import stored_backbone
from benchmark.stopwatch import Stopwatch
from benchmark.studies import digest_of_study, measured_study
from cramer_peft.errors import MissingExtraError, MissingModelError
from cramer_peft.recsys.devices import fastest_device
from cramer_peft.recsys.evaluation.users import mask_scorer
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.sources import STATED

NOT_HERE = (MissingModelError, MissingExtraError)  # errors that leave a cell empty, to be tried again elsewhere


def digest_of(cell: Cell, data: LoadedData) -> str:
    """Return the digest of everything that determines the cell's result."""
    config = mask_config_on(cell.backbone, mask_config(cell.method, cell.settings))
    return cell_digest(cell, data.digest, None if config is None else config.to_dict(), digest_of_study(cell))


def run_cell(cell: Cell, output: Path) -> CellResult:
    """Run one cell and write its result. Its backbones must be stored.

    The result is "empty", with the reason, if the cell cannot be run here: weights or a package are missing, or the
    method reads the inside of another backbone.

    Raises:
        CramerError: If the data, the backbone or the settings cannot be used.
    """
    data = load_data(cell.source, cell.protocol)
    digest = digest_of(cell, data)
    reason = not_on(cell.method, cell.variant, cell.backbone)
    if reason is not None:
        result = CellResult(cell.identity, digest, "empty", reason)
        result.save(output, cell.name)
        return result
    backbone = stored_backbone(cell, data, output)
    try:
        if cell.study is None:
            result = _measured(cell, data, backbone, digest)
        else:
            result = measured_study(cell, data, backbone, digest, output)
    except NOT_HERE as error:
        result = CellResult(cell.identity, digest, "empty", str(error))
    result.save(output, cell.name)
    return result


def _measured(cell: Cell, data: LoadedData, backbone: Any, digest: str) -> CellResult:
    method = method_named(cell.method)
    task, setting = task_and_setting(cell, data, backbone, method)
    watch = Stopwatch()
    ranker = None if method.make is None else method.make(mask_config(cell.method, cell.settings), cell.settings)
    if ranker is not None:
        ranker.fit(task)
    watch.trained()
    tracks = make_tracks(setting)
    if isinstance(ranker, OracleFilter):
        ranker.know(*(track.requests for name, track in tracks.items() if not name.endswith("shuffled")))
    measured = measure(
        setting,
        frozen_scorer(backbone),
        None if ranker is None else ranker.scores,
        _strength_of(ranker),
        tracks,
        method.reads,
    )
    figures = {
        "trainable": 0 if ranker is None else ranker.trainable,
        "trained_on": _device_name(),
        "seconds": watch.seconds(),
        **measured.figures,
    }
    return CellResult(cell.identity, digest, figures=figures, values=measured.values)


def _device_name() -> str:
    """Return the name of the fastest device: a GPU's own, or its type. Seconds count for one kind of device."""
    device = fastest_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _strength_of(ranker: RequestRanker | None) -> StrengthScorer | None:
    """Return a scorer at a given strength; None for a ranker without strengths."""
    masks = ranker.masks if isinstance(ranker, MaskRanker) and ranker.has_strength else None
    if masks is None:
        return None
    return lambda item_ids, requests, alpha: mask_scorer(masks, alpha)(item_ids, requests)


def task_and_setting(cell: Cell, data: LoadedData, backbone: Any, method: Method) -> tuple[RankerTask, Setting]:
    """Return the training task and the setting to measure; only the setting holds what is kept from training."""
    settings, catalogue, split = cell.settings, data.catalogue, data.split
    options, unseen_attributes = settings.generator, None
    if settings.hold_out == "attributes":
        kept, unseen_attributes = hold_out(catalogue.attributes, HELD_OUT, cell.seed)
        options = replace(options, attributes=kept)
    taught, unseen_users = taught_split(split, settings.hold_out == "users", cell.seed)
    name, encoder_options = encoder_of(settings.encoder)
    encoder = request_encoder(name, catalogue, backbone, encoder_options)
    said = stated_visits(cell, taught) if STATED in (settings.requests or {}) else ()
    task = RankerTask(backbone, encoder, catalogue, taught, options, cell.seed, requests=settings.requests, said=said)
    setting = Setting(
        catalogue,
        split.history("test"),
        split.test_target,
        int(backbone.max_length),
        cell.seed,
        settings.k,
        unseen_attributes,
        unseen_users,
        method.most_users(settings.max_users),
        method.tracks,
    )
    return task, setting
