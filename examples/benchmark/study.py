"""Cells that ask something else than the tracks: people's own words, or what carries over to another domain."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.baselines import FusionRanker, MaskRanker, RankerTask, RequestRanker
from benchmark.cells import Cell, CellResult, RealLanguage, Transfer, study_digest
from benchmark.data import LoadedData, load_data
from benchmark.methods import mask_config, method_named
from benchmark.plan import COSTS, Costs, estimate_backbone, estimate_cell
from benchmark.redial import (
    FUSION_WEIGHTS,
    NO_REQUEST,
    SHUFFLED,
    STRENGTHS,
    WORDINGS,
    RedialPart,
    RedialParts,
    choose_candidate,
    dialogue_interval,
    fusion_candidates,
    mask_candidates,
    mask_scorer,
    redial_values,
    split_dialogues,
)
from benchmark.redial_data import RedialRequest, match_requests, read_redial, read_years
from benchmark.transfer import (
    TransferOptions,
    prepare_transfer,
    shared_attributes,
    transfer_tracks,
)
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import dataset_folder
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Scorer, frozen_scorer
from cramer_peft.recsys.evaluation.measure import Setting, measure
from cramer_peft.recsys.evaluation.summary import entry, summarise
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.text_encoders import request_encoder, text_encoder, without_cache
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES
from cramer_peft.recsys.training.backbone_training import backbone_options
from cramer_peft.recsys.training.generator_training import BackboneOptions

REQUEST = "request"
DIALOGUE = "dialogue/index"  # of each row, for the bootstrap over dialogues
TARGET_EPOCHS, TARGET_PATIENCE = 4, 2  # of the target's items
LITTLE = 0.1
_SPLIT_SEED = 0  # of the dialogues: the same for every seed, so that what is for the test stays so
_SCORED = 0.5  # cost of an answer that is ranked and no more, of that of one with all its metrics


def digest_of_study(cell: Cell) -> str | None:
    """Digest of all that determines a cell's study; None where it has none.

    Raises:
        DataError: If its file or its data cannot be read.
    """
    study = cell.study
    if study is None:
        return None
    if isinstance(study, Transfer):
        return study_digest(study, load_data(study.target, cell.protocol).digest)
    return study_digest(study, _dialogues(study.dialogues)[1])


def estimate_study(cell: Cell, data: LoadedData, costs: Costs = COSTS) -> float:
    """Seconds that a cell with a study will take, without its backbone."""
    learned = estimate_cell(replace(cell, settings=replace(cell.settings, max_users=1)), data.size, costs)
    if isinstance(cell.study, RealLanguage):
        one = costs.answer + costs.answer_item * len(data.catalogue)
        return learned + _answers(cell, len(_dialogues(cell.study.dialogues)[0])) * one * _SCORED
    assert cell.study is not None
    size = load_data(cell.study.target, cell.protocol).size
    whole = replace(cell, settings=replace(cell.settings, backbone=_target_training(cell)))
    step = costs.step + costs.step_item * size.items
    steps = cell.settings.generator.steps * (2 * LITTLE + cell.study.full)
    users = min(size.users, cell.settings.max_users or size.users)
    answers = users * 5 * (3 + cell.study.full) * (costs.answer + costs.answer_item * size.items)
    epochs = estimate_backbone(whole, size, costs)
    return learned + epochs + method_named(cell.method).learns * steps * step + answers


def _answers(cell: Cell, rows: int) -> float:
    """Answers asked in all: each candidate in each wording of three tenths of the rows, and the final ones."""
    method = method_named(cell.method)
    rows = min(rows, *(limit for limit in (cell.settings.max_users, method.max_users) if limit), rows)
    candidates = {"text fusion": len(FUSION_WEIGHTS), "frozen": 0}.get(
        cell.method, len(STRENGTHS) if method.config is not None else 1
    )
    return method.scores * rows * (0.3 * len(WORDINGS) * candidates + 2)


def measured_study(cell: Cell, data: LoadedData, backbone: Any, digest: str) -> CellResult:
    """Train a cell's method and measure its study.

    Args:
        cell: The cell; it has a study.
        data: Its data.
        backbone: Its trained backbone.
        digest: Of the cell.

    Raises:
        CramerError: If the study's data cannot be used, or the method has no part in it.
    """
    start, cpu = time.perf_counter(), time.process_time()
    settings = cell.settings
    method = method_named(cell.method)
    encoder = request_encoder(settings.encoder, data.catalogue, backbone)
    task = RankerTask(backbone, encoder, data.catalogue, data.split, settings.generator, cell.seed)
    ranker = None if method.make is None else method.make(mask_config(cell.method, settings), settings)
    if ranker is not None and not isinstance(ranker, FusionRanker):  # its weight is chosen on dialogues instead
        ranker.fit(task)
    trained, trained_cpu = time.perf_counter(), time.process_time()
    study = _real_language if isinstance(cell.study, RealLanguage) else _transfer
    figures, values = study(cell, data, task, ranker)
    seconds = {
        "train": trained - start,
        "evaluate": time.perf_counter() - trained,
        "train_cpu": trained_cpu - cpu,
        "evaluate_cpu": time.process_time() - trained_cpu,
    }
    head = {"trainable": 0 if ranker is None else ranker.trainable, "seconds": seconds}
    return CellResult(cell.identity, digest, figures={**head, **figures}, values=values)


_Measured = tuple[dict[str, Any], dict[str, Tensor]]


# ---------------------------------------------------------------- people's own words


def _real_language(cell: Cell, data: LoadedData, task: RankerTask, ranker: RequestRanker | None) -> _Measured:
    assert isinstance(cell.study, RealLanguage)
    parts = _dialogue_parts(cell, data, int(task.backbone.max_length))
    part = parts.test if cell.study.stage == "test" else parts.validation
    scorers: dict[str, tuple[Scorer, str]] = {}
    chosen: dict[str, Any] = {}
    if ranker is not None:
        candidates = _candidates(ranker, task)
        choice = choose_candidate(candidates, parts.validation, cell.settings.k)
        scorers[REQUEST] = candidates[choice.candidate], choice.wording
        chosen = {"candidate": choice.candidate, "wording": choice.wording, "table": choice.table}
    rows = redial_values(scorers, frozen_scorer(task.backbone), part, cell.seed, cell.settings.k)
    values = {
        f"{name.replace(f'{REQUEST}, ', '')}/{metric}": value
        for name, row in rows.items()
        for metric, value in row.items()
    }
    index = {name: float(number) for number, name in enumerate(dict.fromkeys(part.dialogues))}
    figures = {
        "users": len(part),
        "dialogues": len(index),
        "without_history": parts.without_history,
        "chosen": chosen,
        "tracks": dialogue_tracks(values, part.dialogues),
    }
    return figures, {**values, DIALOGUE: torch.tensor([index[name] for name in part.dialogues])}


def dialogue_tracks(values: Mapping[str, Tensor], dialogues: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Track → metric → mean and interval, dialogues drawn whole.

    Args:
        values: "track/metric" → (rows,).
        dialogues: Each row's dialogue.
    """
    tracks: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        track, metric = key.rsplit("/", 1)
        tracks.setdefault(track, {})[metric] = entry(dialogue_interval(value, dialogues))
    return tracks


def _candidates(ranker: RequestRanker, task: RankerTask) -> dict[str, Scorer]:
    """A method at each of its strengths or weights; as it is, where it has none."""
    if isinstance(ranker, FusionRanker):
        return fusion_candidates(task.backbone, text_encoder(task.encoder), task.catalogue)
    if isinstance(ranker, MaskRanker) and ranker.masks is not None and ranker.masks.generator.gate.name != "topk":
        return mask_candidates(ranker.masks)
    return {"as trained": ranker.scores}


def _dialogue_parts(cell: Cell, data: LoadedData, max_length: int) -> RedialParts:
    assert isinstance(cell.study, RealLanguage)
    matched = match_requests(_dialogues(cell.study.dialogues)[0], data.catalogue, _years(cell, data.catalogue))
    parts = split_dialogues(matched, len(data.catalogue), max_length, seed=_SPLIT_SEED)
    limits = [limit for limit in (cell.settings.max_users, method_named(cell.method).max_users) if limit is not None]
    if not limits:
        return parts
    return replace(parts, validation=_some(parts.validation, min(limits)), test=_some(parts.test, min(limits)))


def _some(part: RedialPart, most: int) -> RedialPart:
    """At most so many rows, the same for every method and seed."""
    if len(part) <= most:
        return part
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    rows = order[:most].sort().values
    texts = [[names[row] for row in rows.tolist()] for names in (part.requests, part.dialogues)]
    return RedialPart(part.item_ids[rows], part.seen[rows], part.targets[rows], *map(tuple, texts))


def _years(cell: Cell, catalogue: Catalogue) -> tuple[int | None, ...] | None:
    """The years in the item file, if it has them; else those in the titles serve."""
    (path,) = sorted(dataset_folder(cell.source.data).glob("*.item"))
    with path.open(encoding="utf-8", errors="replace") as file:
        columns = [name.split(":")[0].strip() for name in file.readline().split("\t")]
    years = read_years(path) if "release_year" in columns else None
    return years if years is not None and len(years) == len(catalogue) else None


@lru_cache(maxsize=2)
def _dialogues(path: str) -> tuple[tuple[RedialRequest, ...], str]:
    """The requests of a file, and a digest of it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"dialogues: {Path(path).name} cannot be read ({error.strerror}).") from error
    return read_redial(path), hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- another domain


def _transfer(cell: Cell, data: LoadedData, task: RankerTask, ranker: RequestRanker | None) -> _Measured:
    study = cell.study
    assert isinstance(study, Transfer)
    if not isinstance(ranker, MaskRanker) or ranker.masks is None:
        raise ConfigError(f"transfer: {cell.method!r} trains no masks, which are what is carried over.")
    target = load_data(study.target, cell.protocol)
    known = isinstance(without_cache(task.encoder), CatalogueEncoder)  # then it is made anew for the target
    prepared = prepare_transfer(
        ranker.masks,
        (task.backbone, data.catalogue, data.split),
        (target.catalogue, target.split),
        TransferOptions(ranker.options(task.options), LITTLE, study.full),
        None if known else task.encoder,
        study.same_items,
        _target_training(cell),
        seed=cell.seed,
    )
    split, backbone = target.split, prepared.backbone
    users = EvaluationUsers.of(target.catalogue, split, study.stage, backbone.max_length)
    setting = Setting(
        target.catalogue,
        split.history(study.stage),
        users.targets,
        backbone.max_length,
        cell.seed,
        cell.settings.k,
        max_users=cell.settings.max_users,
    )
    tracks = transfer_tracks(users, data.catalogue, TEST_TEMPLATES, cell.seed)
    values = {}
    for arm, masks in prepared.rankers.items():
        measured = measure(setting, frozen_scorer(backbone), mask_scorer(masks), tracks=tracks, reads=False)
        values.update({f"{arm}: {key}": value for key, value in measured.values.items()})
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
    """Few epochs: only the items are learned, from where their texts put them."""
    own = cell.settings.backbone or backbone_options(cell.backbone)
    return replace(own, epochs=min(own.epochs, TARGET_EPOCHS), patience=TARGET_PATIENCE)


__all__ = [
    "DIALOGUE",
    "NO_REQUEST",
    "REQUEST",
    "SHUFFLED",
    "dialogue_tracks",
    "digest_of_study",
    "estimate_study",
    "measured_study",
]
