"""Measure a cell of the matrix real-language."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.baselines import FusionRanker, MaskRanker, RankerTask, RequestRanker
from benchmark.cells import Cell, RealLanguage
from benchmark.data import LoadedData
from benchmark.measures.measure import frozen_scorer
from benchmark.measures.summary import entry
from benchmark.methods import method_named
from benchmark.plan.costs import COSTS, Costs
from benchmark.real_language.matching import match_requests
from benchmark.real_language.measure_dialogues import (
    FUSION_WEIGHTS,
    STRENGTHS,
    WORDINGS,
    choose_candidate,
    dialogue_interval,
    fusion_candidates,
    mask_candidates,
    redial_values,
)
from benchmark.real_language.parts import RedialPart, RedialParts, split_dialogues
from benchmark.real_language.requests_file import RedialRequest, read_redial
from benchmark.titles import read_years
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import dataset_folder
from cramer_peft.recsys.evaluation.users import Scorer
from cramer_peft.recsys.requests.catalogue_encoder import text_encoder

REQUEST = "request"
DIALOGUE = "dialogue/index"  # each row's dialogue, for the bootstrap over dialogues
_SPLIT_SEED = 0  # the same for every seed of a cell, so that test dialogues are never used for choices
_SCORED = 0.5  # cost of an answer that is only ranked, as a share of one with all its metrics


@lru_cache(maxsize=2)
def load_dialogues(path: str) -> tuple[tuple[RedialRequest, ...], str]:
    """Return the requests of a file and the digest of its contents.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"dialogues: {Path(path).name} cannot be read ({error.strerror}).") from error
    return read_redial(path), hashlib.sha256(content).hexdigest()


def estimate_language(cell: Cell, data: LoadedData, study: RealLanguage, costs: Costs = COSTS) -> float:
    """Return the seconds of the answers that a cell gives."""
    one = costs.answer + costs.answer_item * len(data.catalogue)
    return _answers(cell, len(load_dialogues(study.dialogues)[0])) * one * _SCORED


def _answers(cell: Cell, rows: int) -> float:
    """Count a cell's answers: each candidate in each wording for three tenths of the rows, and the final ones."""
    method = method_named(cell.method)
    rows = min(rows, method.most_users(cell.settings.max_users) or rows)
    candidates = {"text fusion": len(FUSION_WEIGHTS), "frozen": 0}.get(
        cell.method, len(STRENGTHS) if method.config is not None else 1
    )
    return method.scores * rows * (0.3 * len(WORDINGS) * candidates + 2)


def measure_language(
    cell: Cell, study: RealLanguage, data: LoadedData, task: RankerTask, ranker: RequestRanker | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Choose the ranker's candidate and wording, and measure it.

    Args:
        cell: The cell.
        study: Its study.
        data: Its data.
        task: The task that the ranker was fitted on.
        ranker: The ranker; None: the frozen model.

    Returns:
        The figures for the cell's JSON file, and "track/metric" → (rows,).
    """
    parts = _dialogue_parts(cell, study, data, int(task.backbone.max_length))
    part = parts.test if study.stage == "test" else parts.validation
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
        "tracks": _dialogue_tracks(values, part.dialogues),
    }
    return figures, {**values, DIALOGUE: torch.tensor([index[name] for name in part.dialogues])}


def _dialogue_tracks(values: Mapping[str, Tensor], dialogues: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return track → metric → mean and interval, from "track/metric" → (rows,)."""
    tracks: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in values.items():
        track, metric = key.rsplit("/", 1)
        tracks.setdefault(track, {})[metric] = entry(dialogue_interval(value, dialogues))
    return tracks


def _candidates(ranker: RequestRanker, task: RankerTask) -> dict[str, Scorer]:
    """Return a method at each of its strengths or weights; as it is, if it has none."""
    if isinstance(ranker, FusionRanker):
        return fusion_candidates(task.backbone, text_encoder(task.encoder), task.catalogue)
    if isinstance(ranker, MaskRanker) and ranker.masks is not None and ranker.has_strength:
        return mask_candidates(ranker.masks)
    return {"as trained": ranker.scores}


def _dialogue_parts(cell: Cell, study: RealLanguage, data: LoadedData, max_length: int) -> RedialParts:
    requests, _ = load_dialogues(study.dialogues)
    matched = match_requests(requests, data.catalogue, _years(cell, data.catalogue))
    parts = split_dialogues(matched, len(data.catalogue), max_length, seed=_SPLIT_SEED)
    most = method_named(cell.method).most_users(cell.settings.max_users)
    if most is None:
        return parts
    return replace(parts, validation=_some(parts.validation, most), test=_some(parts.test, most))


def _some(part: RedialPart, most: int) -> RedialPart:
    """Return at most ``most`` rows, the same for every method and seed."""
    if len(part) <= most:
        return part
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    rows = order[:most].sort().values
    texts = [[names[row] for row in rows.tolist()] for names in (part.requests, part.dialogues)]
    return RedialPart(part.item_ids[rows], part.seen[rows], part.targets[rows], *map(tuple, texts))


def _years(cell: Cell, catalogue: Catalogue) -> tuple[int | None, ...] | None:
    """Return the years in the item file; None if it has none, and the years in the titles count."""
    (path,) = sorted(dataset_folder(cell.source.data).glob("*.item"))
    with path.open(encoding="utf-8", errors="replace") as file:
        columns = [name.split(":")[0].strip() for name in file.readline().split("\t")]
    years = read_years(path) if "release_year" in columns else None
    return years if years is not None and len(years) == len(catalogue) else None
