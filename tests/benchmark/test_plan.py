from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark.baselines.learning import LearnedRanker
from benchmark.cells import Cell, CellSettings, DataSource
from benchmark.methods import ABLATIONS, METHODS, mask_config, not_on
from benchmark.plan import (
    HOLD_OUTS,
    DataSize,
    Job,
    PlanOptions,
    Timing,
    estimate_backbone,
    estimate_cell,
    plan_cells,
    refined,
    within,
)

from cramer_peft import inject_request_masks
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import BACKBONES, SASRec

SMALL, LARGE = DataSize(100, 50, 1000), DataSize(100, 5000, 1000)
CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "ours", 0)


def test_the_full_matrix_has_every_method_for_every_seed_and_every_change_once() -> None:
    cells = plan_cells(PlanOptions())
    assert {(cell.method, cell.seed) for cell in cells if cell.variant is None} == {
        (method, seed) for method in METHODS if method != "ours, shuffled requests" for seed in (0, 1, 2)
    }
    assert sorted(cell.variant for cell in cells if cell.variant) == sorted([*ABLATIONS, *HOLD_OUTS])
    assert len({cell.name for cell in cells}) == len(cells)


def test_each_change_changes_something() -> None:
    cells = {cell.variant: cell for cell in plan_cells(PlanOptions()) if cell.method == "ours" and cell.seed == 0}
    own = cells.pop(None)
    for variant, cell in cells.items():
        assert cell.settings != own.settings, variant
        default, changed = (mask_config("ours", c.settings) for c in (own, cell))
        assert default is not None
        assert changed is not None
        if variant in ABLATIONS and ABLATIONS[variant].config:
            assert default.to_dict() != changed.to_dict(), variant


def test_backbones_are_compared_at_their_own_modules_and_cost() -> None:
    cells = plan_cells(PlanOptions("backbones"))
    assert {cell.backbone for cell in cells} == {*BACKBONES} - {"sasrec"}
    positions = {cell.backbone: cell.settings.generator.positions for cell in cells}
    assert positions == {"bert4rec": 2, "gru4rec": 8, "replay-sasrec": 2}
    costs = {cell.backbone: estimate_cell(cell, SMALL) for cell in cells if cell.method == "ours"}
    assert costs["bert4rec"] > costs["gru4rec"] > 2
    layers = {cell.backbone: cell.settings.config for cell in variants("masks inside too", "gru4rec", "bert4rec")}
    assert layers["gru4rec"]["target_modules"] == ["gru", "dense", "head"]
    assert layers["bert4rec"]["target_modules"] == ["intermediate.dense", "output.dense", "cls.predictions.decoder"]
    (inside,) = variants("masks inside instead", "gru4rec")
    assert inside.settings.config["target_modules"] == ["gru", "dense"]


def variants(variant: str, *backbones: str) -> list[Cell]:
    return plan_cells(PlanOptions("backbones", backbones=backbones, methods=("ours",), variants=(variant,)))[1::2]


@pytest.mark.parametrize("name", METHODS)
def test_what_needs_the_inside_of_sasrec_is_said_to(name: str) -> None:
    made = METHODS[name].make
    settings = CellSettings(encoder="hashing", language_model="none")
    ranker = None if made is None or name == "reranker" else made(mask_config(name, settings), settings)
    needs = isinstance(ranker, LearnedRanker) and not ranker.any_backbone
    assert (not_on(name, None, "gru4rec") is not None) == needs
    assert not_on(name, None, "sasrec") is None
    if needs:
        assert estimate_cell(replace(CELL, method=name, backbone="gru4rec"), SMALL) == 0


def test_changes_that_a_backbone_has_no_modules_for_are_said_to() -> None:
    assert "last block's masks instead" in str(not_on("ours", "last block's masks instead", "gru4rec"))
    assert not_on("ours", "last block's masks instead", "bert4rec") is None
    assert "no layer of its own" in str(not_on("ours", "masks inside too", "replay-sasrec"))
    assert not_on("ours", "unseen users", "gru4rec") is None
    assert plan_cells(PlanOptions("backbones", methods=("ours",), variants=tuple(ABLATIONS)))


def test_the_headline_has_both_splits() -> None:
    assert {cell.protocol for cell in plan_cells(PlanOptions("headline"))} == {"temporal", "leave-one-out"}


def test_what_is_given_replaces_what_the_matrix_has() -> None:
    options = PlanOptions(
        sources=(DataSource("films"),), methods=("frozen",), seeds=(7,), protocols=("temporal",), steps=3, epochs=2
    )
    (cell,) = plan_cells(options)
    assert (cell.method, cell.seed, cell.protocol) == ("frozen", 7, "temporal")
    assert cell.settings.generator.steps == 3
    assert cell.settings.backbone is not None
    assert cell.settings.backbone.epochs == 2


def test_each_backbone_keeps_its_own_training() -> None:
    cells = plan_cells(PlanOptions("quick", backbones=("sasrec", "bert4rec"), methods=("frozen",)))
    patience = [cell.settings.backbone.patience for cell in cells if cell.settings.backbone]
    assert len(patience) == 2
    assert patience[1] > patience[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions("whole"), "matrix: found 'whole'"),
        (PlanOptions("others"), "give --data"),
        (PlanOptions(methods=("magic",)), "method: found 'magic'"),
        (PlanOptions(protocols=("random",)), "protocol: found 'random'"),
        (PlanOptions(variants=("rank 99",)), "variant: found 'rank 99'"),
        (PlanOptions(settings=CellSettings(config={"rnk": 2})), "rnk"),
        (PlanOptions(sources=(DataSource("a"), DataSource("a"))), "repeat a name"),
    ],
)
def test_what_cannot_be_planned_is_told(options: PlanOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_cells(options)


def test_a_folder_is_known_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (cell,) = plan_cells(PlanOptions(sources=(DataSource(str(folder)),), methods=("frozen",), seeds=(0,)))
    assert cell.identity["data"] == "films"


def test_estimates_grow_with_what_costs() -> None:
    assert (
        estimate_cell(CELL, LARGE) > estimate_cell(CELL, SMALL) > estimate_cell(replace(CELL, method="frozen"), SMALL)
    )
    fewer = replace(CELL, settings=CellSettings(max_users=10))
    assert estimate_cell(fewer, LARGE) < estimate_cell(CELL, LARGE)
    assert estimate_backbone(CELL, LARGE) > estimate_backbone(CELL, SMALL)


def test_estimates_learn_from_what_was_measured() -> None:
    timings = [
        Timing("films", "ours", 10, 30),
        Timing("films", "frozen", 10, 20),
        Timing("films", "film", 10, 20),
        Timing("games", "ours", 10, 5),
    ]
    assert refined("films", "ours", 10, timings) == 30
    assert refined("films", "lora", 10, timings) == 20
    assert refined("books", "lora", 10, timings) == 20
    assert refined("films", "ours", 10, []) == 10


def jobs() -> list[Job]:
    cells = [replace(CELL, method=name) for name in ("frozen", "ours", "lora")]
    return [Job(CELL, True, 60), *(Job(cell, False, 60) for cell in cells)]


def test_a_budget_takes_what_fits_and_counts_the_backbone() -> None:
    kept, cut = within(jobs(), minutes=2, workers=1)
    assert [job.label for job in kept] == ["backbone sasrec", "frozen"]
    assert [job.label for job in cut] == ["ours", "lora"]
    assert within(jobs(), minutes=2, workers=2)[1] == []
    stored = [replace(job, stored=True) for job in jobs()[:2]]
    assert len(within([*stored, *jobs()[2:]], minutes=1, workers=1)[0]) == 3


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs about 2"):
        within(jobs(), minutes=1.5, workers=1)


@pytest.mark.parametrize("variant", ABLATIONS)
def test_each_change_of_the_masks_can_be_made(variant: str, make_sasrec: Callable[..., SASRec]) -> None:
    settings = CellSettings(config=ABLATIONS[variant].config, encoder="hashing")
    config = mask_config("ours", settings)
    masks = inject_request_masks(make_sasrec(), config)
    layers = masks.peft_config[masks.active_adapters[0]].masked_modules
    assert layers
    if variant == "last block's masks instead":
        assert {name.split(".layer.")[1][0] for name in layers} == {"1"}
