"""The matrices stated and paper from plan to report, on a made-up shop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark.cells import CellSettings, DataSource
from benchmark.methods import CRAMER, OURS, STATIC_TOPK
from benchmark.own_requests.stored_vectors import stored_vectors
from benchmark.plan.paper_variants import PAPER_VARIANTS
from benchmark.plan.planner import PlanOptions, plan_cells
from benchmark.run.scheduler import plan_jobs
from benchmark.run_benchmark import run_benchmark
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")

SETTINGS = CellSettings(
    generator=GeneratorOptions(batch_size=32),
    backbone=BackboneOptions(epochs=1, batch_size=32, max_length=8),
    encoder="hashing",
)


def options(matrix: str, shop: Path, **changes: Any) -> PlanOptions:
    given = {"sources": (DataSource(str(shop)),), "seeds": (0,), "steps": 2, "settings": SETTINGS, **changes}
    return PlanOptions(matrix, **given)


def test_stated_requests_are_learned_by_ours_and_by_the_baselines(shop: Path, tmp_path: Path) -> None:
    asked = options("stated", shop, methods=("frozen", OURS, "film", "text fusion"), steps=120)
    results = run_benchmark(asked, tmp_path)
    assert [(result.status, result.reason) for result in results] == [("done", None)] * 4
    document = json.loads((tmp_path / "results.json").read_text())
    (study,) = document["studies"]
    for method in (OURS, "film", "text fusion"):
        tracks = study["figures"][method]
        own, shuffled, mean, none = (
            tracks[f"{name} request{'s' * (name in ('own', 'shuffled'))}"]["ndcg@10"]["value"]
            for name in ("own", "shuffled", "mean", "no")
        )
        assert own > 0.3 > max(shuffled, mean, none), method
        assert study["differences"][f"{method}: own - shuffled requests"]["adjusted p"] < 0.01
    assert study["figures"]["frozen"].keys() == {"no request", "no request, 100 negatives"}
    assert all(check["holds"] for result in results for check in result.figures["checks"])
    assert all(job.stored for job in plan_jobs(plan_cells(asked), tmp_path))
    assert list((tmp_path / "plots").glob("own-requests-*.png"))
    assert "| film | " in (tmp_path / "results.md").read_text()


def test_the_papers_experiment_is_run_with_its_settings_varied(shop: Path, tmp_path: Path) -> None:
    names = ("drop ratio 0.2", "layers 4", "masks shared", "schedule linear", "scope W_O")
    asked = options("paper", shop, methods=("frozen", CRAMER, STATIC_TOPK), variants=names, probe="thing")
    asked = PlanOptions(**{**vars(asked), "backbones": ("sasrec",)})
    results = run_benchmark(asked, tmp_path)
    assert [(result.status, result.reason) for result in results] == [("done", None)] * 8
    cramer = next(r for r in results if r.cell["method"] == CRAMER and r.cell["variant"] is None)
    assert cramer.figures["training_requests"] == 60 * 4
    assert set(cramer.figures["tracks"]) >= {"own requests", "shuffled requests", "mean request", "no request"}
    assert set(cramer.figures["tracks"]["own requests, 100 negatives"]) >= {"hr@20", "ndcg@10", "mrr@20"}
    closed = cramer.figures["closed_gates"]
    assert sum(closed["share"].values()) / len(closed["share"]) == pytest.approx(0.1, abs=0.05)
    assert {"for 1", "against 3"} <= {name.removeprefix("probe: ") for name in cramer.figures["tracks"]}
    only = next(r for r in results if r.cell["variant"] == "scope W_O")
    assert all("attention.output" in name for name in only.figures["closed_gates"]["share"])
    text = (tmp_path / "results.md").read_text()
    for part in ("### CRAMER: drop ratio", "### Share of the probed attribute", "adjusted p", "triples possible"):
        assert part in text
    folders = {path.name for path in (tmp_path / "backbones").iterdir()}
    assert len(folders) == 2  # one of two layers, one of four
    assert len(list((tmp_path / "plots").glob("varied-*.png"))) == 5
    assert len(list((tmp_path / "vectors").iterdir())) == 1  # texts are encoded once for all methods


def test_the_paper_learns_the_next_item_of_one_row_each(shop: Path) -> None:
    cells = {(cell.method, cell.variant): cell for cell in plan_cells(options("paper", shop, backbones=("sasrec",)))}
    for method in (CRAMER, "film", "query-seqrec joined"):
        generator = cells[method, None].settings.generator
        assert (generator.edit_weight, generator.next_item_weight, generator.positions) == (0, 1, 1)
    assert cells[OURS, None].settings.generator.edit_weight == 1
    assert {variant for method, variant in cells if method == CRAMER and variant} == set(PAPER_VARIANTS)
    assert cells[CRAMER, "sparsity 0.5"].settings.generator.sparsity_weight == 0.5
    names = [cell.name for cell in cells.values()]
    assert len(set(names)) == len(names)
    assert cells[CRAMER, "layers 6"].backbone_name != cells[CRAMER, None].backbone_name


@pytest.mark.parametrize(
    ("matrix", "changes", "message"),
    [
        ("stated", {"methods": ("oracle filter",)}, "made-up requests only"),
        ("stated", {"methods": (OURS,), "variants": ("layers 4",)}, "expected one of 'unseen users'"),
        ("paper", {"variants": ("layers 5",)}, "expected one of 'drop ratio"),
        ("others", {"probe": "thing"}, "probe: not an option of"),
    ],
)
def test_what_cannot_be_planned_is_told(shop: Path, matrix: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_cells(options(matrix, shop, **changes))


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["lamp", "tent", "kettle", "rope", "drum", "rug", "red", "blue", "big", "small", "thing", "need", "a"],
]
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 140, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**SIZES, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_any_encoder_of_transformers_can_be_given_by_its_folder_and_tuned(
    kind: str, shop: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / f"tiny-{kind}"
    encoder.mkdir()
    (encoder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(encoder / "vocab.txt"), model_max_length=64).save_pretrained(encoder)
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(encoder)
    settings = CellSettings(SETTINGS.config, SETTINGS.generator, SETTINGS.backbone, str(encoder))
    names = ("tuning last", "tuning all")
    asked = options("paper", shop, methods=(CRAMER,), variants=names, backbones=("sasrec",), settings=settings)
    results = run_benchmark(asked, tmp_path / "out")
    assert [(result.status, result.reason) for result in results] == [("done", None)] * 3
    none, last, every = (result.figures["trainable"] for result in results)
    assert none < last < every
    assert str(tmp_path) not in (tmp_path / "out" / "results.json").read_text()


class Counting:
    """An encoder that counts what it encodes."""

    name, dim = "counting", 3

    def __init__(self) -> None:
        self.count = 0

    def encode(self, texts: list[str]) -> Tensor:
        self.count += len(texts)
        return torch.tensor([[len(text), 1.0, 2.0] for text in texts])


def test_vectors_are_kept_for_the_next_cell(tmp_path: Path) -> None:
    encoder = Counting()
    first = stored_vectors(encoder, ["a", "bbb", "a", "cc"], tmp_path, "counting")
    assert encoder.count == 3
    again = stored_vectors(encoder, ["cc", "bbb", "a"], tmp_path, "counting")
    assert encoder.count == 3
    assert torch.equal(again.encode(["bbb", "a", "bbb"]), torch.tensor([[3.0, 1, 2], [1, 1, 2], [3, 1, 2]]))
    assert torch.equal(first.encode(["dddd", "a"])[:, 0], torch.tensor([4.0, 1]))
    assert encoder.count == 4
