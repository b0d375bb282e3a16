"""Train a cell's method on requests that belong to a next item, and measure it on those of users it has not learned."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.baselines import BaselineRanker, MaskRanker, RankerTask
from benchmark.cell_files import CellResult
from benchmark.cells import Cell, OwnRequests
from benchmark.data import LoadedData
from benchmark.measures.falsifiers import check_triple
from benchmark.measures.summary import summarise
from benchmark.methods import encoder_of, mask_config, method_named
from benchmark.own_requests.closed_gates import closed_gates
from benchmark.own_requests.measure_requests import LENGTHS, MEAN, SAMPLED, AskedUsers, RequestScorer, request_values
from benchmark.own_requests.request_data import RequestData, request_data
from benchmark.own_requests.stored_vectors import stored_vectors
from benchmark.stopwatch import Stopwatch
from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.tracks import OWN, SHUFFLED, shuffled_texts
from cramer_peft.recsys.evaluation.users import drawn_rows
from cramer_peft.recsys.requests.request_encoders import CATALOGUE_ENCODERS, request_encoder
from cramer_peft.recsys.requests.sources import HISTORY, STATED

PROBES = {
    "for 1": "I want a {} film",
    "for 2": "something full of {}, please",
    "for 3": "I feel like watching {} tonight",
    "against 1": "no {}, please",
    "against 2": "I am tired of {}",
    "against 3": "anything but {}",
}
_MEAN_OF = 1000  # texts whose mean stands for everybody's request
_KEPT = 8  # a fixed number of requests whose closed gates are compared


def measured_requests(cell: Cell, data: LoadedData, backbone: Any, digest: str, output: Path) -> CellResult:
    """Train a cell's method and measure its study of own requests.

    Args:
        cell: The cell.
        data: Its data.
        backbone: Its trained backbone.
        digest: Digest of the cell.
        output: Folder of the results, for vectors that all methods share.

    Raises:
        CramerError: If the study's data cannot be used, or the method cannot be trained on it.
    """
    watch = Stopwatch()
    study, settings, method = cell.study, cell.settings, method_named(cell.method)
    assert isinstance(study, OwnRequests)
    found = request_data(cell, data, int(backbone.max_length))
    ranker = None if method.make is None else method.make(mask_config(cell.method, settings), settings)
    if ranker is not None:
        ranker.fit(_task(cell, found, backbone, output))
    watch.trained()
    scorer = None
    if ranker is not None:
        assert isinstance(ranker, BaselineRanker)  # others are refused by the plan
        scorer = RequestScorer(ranker.scores, ranker.mean_scorer(_mean_texts(found, cell.seed)))
    users = _users(found, study, cell.seed, method.most_users(settings.max_users))
    values = request_values(users, backbone, scorer, cell.seed)
    figures: dict[str, Any] = {
        "users": len(users.rows),
        "training_requests": len(found.said),
        "trainable": 0 if ranker is None else ranker.trainable,
        "seconds": watch.seconds(),
        "tracks": summarise(values, cell.seed),
        "checks": _checks(values),
    }
    if isinstance(ranker, MaskRanker) and ranker.masks is not None:
        asked = [text for row in users.rows.tolist() if (text := found.texts[row]) is not None]
        closed = closed_gates(ranker.masks, asked[:: max(1, len(asked) // _KEPT)][:_KEPT])
        figures |= {} if closed is None else {"closed_gates": closed}
    return CellResult(cell.identity, digest, figures=figures, values=values)


def _task(cell: Cell, found: RequestData, backbone: Any, output: Path) -> RankerTask:
    settings, study = cell.settings, cell.study
    assert isinstance(study, OwnRequests)
    name, options = encoder_of(settings.encoder)
    encoder = request_encoder(name, found.catalogue, backbone, options)
    config = mask_config(cell.method, settings)
    tuned = config is not None and config.encoder_tuning != "none"
    if name not in CATALOGUE_ENCODERS and not tuned:
        texts = [text for _, text, _ in found.said]
        texts += [text for text in (*found.asked, *found.texts) if text is not None]
        encoder = stored_vectors(encoder, texts, output, settings.encoder or "")
    requests: dict[str, float] | None = None if settings.requests is None else dict(settings.requests)
    if study.source == "history":  # each interaction is a row: what ``said`` holds are the texts before
        given = requests or {HISTORY: 1.0}
        requests = {STATED if name == HISTORY else name: weight for name, weight in given.items()}
    return RankerTask(
        backbone,
        encoder,
        found.catalogue,
        found.taught,
        settings.generator,
        cell.seed,
        requests=requests,
        said=found.said if requests is None or STATED in requests else (),
        asked=found.asked,
    )


def _mean_texts(found: RequestData, seed: int) -> list[str]:
    texts = [text for _, text, _ in found.said]
    return random.Random(f"{seed}:{MEAN}").sample(texts, min(_MEAN_OF, len(texts)))


def _users(found: RequestData, study: OwnRequests, seed: int, most: int | None) -> AskedUsers:
    own = [text if counts else None for text, counts in zip(found.texts, found.counts.tolist(), strict=True)]
    everybody = found.counts.nonzero().flatten()
    rows = everybody[drawn_rows(len(everybody), most, seed)]
    probes, flags = {}, None
    if study.probe is not None:
        names = {name.casefold(): column for column, name in enumerate(found.catalogue.attributes)}
        if study.probe.casefold() not in names:
            raise DataError(
                f"probe: found {study.probe!r}, expected an attribute of the data: "
                f"{', '.join(found.catalogue.attributes[:20])}. Name one of them, or leave it out."
            )
        flags = found.catalogue.item_attributes[:, names[study.probe.casefold()]]
        probes = {name: text.format(study.probe.lower()) for name, text in PROBES.items()}
    tracks = {OWN: own, SHUFFLED: shuffled_texts(own, seed)}
    return AskedUsers(found.split.history(study.stage), found.split.target(study.stage), rows, tracks, probes, flags)


def _checks(values: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return whether each triple of HR, NDCG and MRR that is reported is possible."""
    checks = []
    for key, column in values.items():
        track, metric = key.rsplit("/", 1)
        ranks = column[~torch.isnan(column)]
        if metric == "rank" and track.removesuffix(SAMPLED) == OWN and len(ranks):
            for k in LENGTHS:
                check = check_triple(ranks, k)
                checks.append({"name": f"{track}: {check.name}", "holds": check.holds, "detail": check.detail})
    return checks
