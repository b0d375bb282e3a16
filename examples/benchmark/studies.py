"""Cells with a study, which replaces the tracks: own requests, real language, or transfer to another domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.baselines import FusionRanker, RankerTask
from benchmark.cell_files import CellResult
from benchmark.cells import Cell, OwnRequests, RealLanguage, Transfer, study_digest
from benchmark.data import LoadedData, load_data
from benchmark.methods import encoder_of, mask_config, method_named
from benchmark.own_requests.request_study import measured_requests
from benchmark.plan.costs import estimate_cell, estimate_requests
from benchmark.real_language.language_study import estimate_language, load_dialogues, measure_language
from benchmark.run.backbones import stored_backbone
from benchmark.stopwatch import Stopwatch
from benchmark.transfer.transfer_study import estimate_transfer, measure_transfer_cell
from cramer_peft.recsys.requests.request_encoders import request_encoder


def digest_of_study(cell: Cell) -> str | None:
    """Return the digest of everything that determines a cell's study; None if it has none.

    Raises:
        DataError: If its file or its data cannot be read.
    """
    study = cell.study
    if study is None:
        return None
    if isinstance(study, Transfer):
        return study_digest(study, load_data(study.target, cell.protocol).digest)
    if isinstance(study, OwnRequests):
        return study_digest(study, "")  # the requests stand in the cell's own data
    return study_digest(study, load_dialogues(study.dialogues)[1])


def estimate_study(cell: Cell, data: LoadedData) -> float:
    """Return the seconds that a cell with a study takes, without its backbone."""
    assert cell.study is not None
    trained = estimate_cell(replace(cell, settings=replace(cell.settings, max_users=1)), data.size)
    if isinstance(cell.study, OwnRequests):
        return trained + estimate_requests(cell, data)
    if isinstance(cell.study, RealLanguage):
        return trained + estimate_language(cell, data, cell.study)
    return trained + estimate_transfer(cell, cell.study)


def measured_study(cell: Cell, data: LoadedData, backbone: Any, digest: str, output: Path) -> CellResult:
    """Train a cell's method and measure its study.

    Args:
        cell: The cell; it has a study.
        data: Its data.
        backbone: Its trained backbone.
        digest: Digest of the cell.
        output: Folder of the stored backbones.

    Raises:
        CramerError: If the study's data cannot be used, or the method cannot be measured by it.
    """
    if isinstance(cell.study, OwnRequests):
        return measured_requests(cell, data, backbone, digest, output)
    watch = Stopwatch()
    settings = cell.settings
    method = method_named(cell.method)
    name, options = encoder_of(settings.encoder)
    encoder = request_encoder(name, data.catalogue, backbone, options)
    task = RankerTask(backbone, encoder, data.catalogue, data.split, settings.generator, cell.seed)
    ranker = None if method.make is None else method.make(mask_config(cell.method, settings), settings)
    if ranker is not None and not isinstance(ranker, FusionRanker):  # fusion's weight is chosen on dialogues instead
        ranker.fit(task)
    watch.trained()
    if isinstance(cell.study, RealLanguage):
        figures, values = measure_language(cell, cell.study, data, task, ranker)
    else:
        assert cell.study is not None
        _, target = cell.with_backbones
        own = stored_backbone(target, load_data(target.source, target.protocol), output)
        figures, values = measure_transfer_cell(cell, cell.study, data, own, ranker)
    head = {"trainable": 0 if ranker is None else ranker.trainable, "seconds": watch.seconds()}
    return CellResult(cell.identity, digest, figures={**head, **figures}, values=values)
