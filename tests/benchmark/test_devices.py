"""Where models are while the benchmark trains and measures them; on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmark.baselines import (
    LLMESR,
    ExpertFiLM,
    FusionRanker,
    ParsedFilter,
    QuerySeqRec,
    RankerTask,
    RequestLoRA,
    RequestRanker,
    ShuffledRequests,
    StaticMask,
    our_masks,
    paper_gate,
)
from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.measures.measure import Setting, measure
from benchmark.methods import METHODS
from benchmark.run.scheduler import plan_jobs, run_jobs
from benchmark.transfer.generators import TransferOptions, transfer_rankers

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.encoders import HashingEncoder
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.devices import brought_to, device_of
from cramer_peft.recsys.evaluation.results import mean_metrics
from cramer_peft.recsys.evaluation.tracks import Track
from cramer_peft.recsys.evaluation.users import EvaluationUsers, batched_scores, mask_scorer
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")
RANKERS: dict[str, Callable[[], RequestRanker]] = {
    "parsed filter": ParsedFilter,
    "text fusion": FusionRanker,
    "token": lambda: QuerySeqRec("token"),
    "state, tuned": lambda: QuerySeqRec("state", tuned=True),
    "llm-esr": LLMESR,
    "film": ExpertFiLM,
    "lora": RequestLoRA,
    "static mask": StaticMask,
    "paper's form": paper_gate,
    "ours": our_masks,
    "shuffled": lambda: ShuffledRequests(our_masks()),
}


@pytest.mark.parametrize("name", RANKERS)
def test_rankers_work_where_the_backbone_is(
    name: str,
    data: tuple[Catalogue, Split],
    make_sasrec: Callable[..., SASRec],
    users: EvaluationUsers,
    few_steps: GeneratorOptions,
    device: str,
) -> None:
    backbone = make_sasrec().to(device)
    ranker = RANKERS[name]()
    ranker.fit(RankerTask(backbone, HashingEncoder(32), *data, few_steps))
    assert device_of(backbone).type == device
    item_ids, texts = users.item_ids[:5], ["I want horror", None, "no drama", " ", "comedy please"]
    with torch.no_grad():
        frozen, scores = backbone(item_ids.to(device)), ranker.scores(item_ids, texts)
    assert scores.device.type == device
    for row in (1, 3):
        assert torch.equal(scores[row], frozen[row])
    assert torch.equal(ranker.scores(item_ids.to(device), texts), scores)


def test_measures_are_taken_on_the_cpu(
    untrained_masks: RequestMaskModel,
    data: tuple[Catalogue, Split],
    users: EvaluationUsers,
    tracks: dict[str, Track],
    device: str,
) -> None:
    masks = untrained_masks.to(device)
    catalogue, split = data
    frozen = lambda item_ids, _: masks(brought_to(masks, item_ids), request=None)  # noqa: E731
    setting = Setting(catalogue, split.history("test"), split.test_target, 8, 0, 5)
    measured = measure(
        setting, frozen, mask_scorer(masks), lambda ids, texts, alpha: mask_scorer(masks, alpha)(ids, texts)
    )
    assert {value.device.type for value in measured.values.values()} == {"cpu"}
    (identity,) = [check for check in measured.figures["checks"] if "strength 0" in check["name"]]
    assert identity["holds"], identity["detail"]
    assert batched_scores(frozen, users.item_ids, [None] * len(users)).device.type == "cpu"
    assert mean_metrics(mask_scorer(masks), frozen, users, tracks)["overlap_blank"] == 1


def test_masks_are_carried_to_a_backbone_on_any_device(
    data: tuple[Catalogue, Split], make_sasrec: Callable[..., SASRec], few_steps: GeneratorOptions, device: str
) -> None:
    pytest.importorskip("wordllama")
    source, target = make_sasrec().to(device), make_sasrec().to(device)
    masks = mask_backbone(source, data[0], None, request_encoder("catalogue-text", data[0], source))
    task = RankerTask(target, request_encoder(None, data[0], target), *data, few_steps)
    scorers = transfer_rankers(masks, task, TransferOptions(RequestMaskConfig(), 0.5))
    for scorer in scorers.values():
        assert scorer(torch.tensor([[1, 2]]), ["more horror"]).isfinite().all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_benchmark(folder: Path, tmp_path: Path, one_epoch: BackboneOptions, workers: int) -> None:
    settings = CellSettings(generator=GeneratorOptions(steps=2, batch_size=4), backbone=one_epoch, encoder="hashing")
    names = (
        [name for name in METHODS if name not in ("reranker", "oracle filter")] if workers == 1 else ["frozen", "ours"]
    )
    cells = [Cell(DataSource(str(folder)), "leave-one-out", "sasrec", name, 0, None, settings) for name in names]
    kinds = ("gru4rec", "bert4rec") if workers == 1 else ()
    cells += [Cell(DataSource(str(folder)), "leave-one-out", kind, "ours", 0, None, settings) for kind in kinds]
    outcomes = list(run_jobs(plan_jobs(cells, tmp_path), tmp_path, workers=workers))
    assert [(outcome.job.label, outcome.reason) for outcome in outcomes if outcome.status != "done"] == []
    assert len(outcomes) == len(cells) + 1 + len(kinds)
