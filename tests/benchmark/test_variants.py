from __future__ import annotations

from collections.abc import Callable

import pytest
from benchmark.cells import Cell, CellSettings
from benchmark.data import DataSize
from benchmark.methods import mask_config, not_on
from benchmark.plan.costs import estimate_cell
from benchmark.plan.planner import PlanOptions, plan_cells
from benchmark.variants import ABLATIONS

from cramer_peft import inject_request_masks
from cramer_peft.recsys.backbones import BACKBONES, SASRec

SMALL, LARGE = DataSize(100, 50, 1000), DataSize(100, 5000, 1000)


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
    assert layers["gru4rec"]["target_modules"] == ["gru", "dense"]
    assert layers["gru4rec"]["target_outputs"] == {"": {"in_place": True, "candidates": "items"}}
    assert layers["bert4rec"]["target_modules"] == ["intermediate.dense", "output.dense"]
    assert layers["bert4rec"]["target_outputs"] == {"": {"in_place": True}}
    (inside,) = variants("masks inside instead", "gru4rec")
    assert inside.settings.config["target_modules"] == ["gru", "dense"]
    assert "target_outputs" not in inside.settings.config


def variants(variant: str, *backbones: str) -> list[Cell]:
    return plan_cells(PlanOptions("backbones", backbones=backbones, methods=("ours",), variants=(variant,)))[1::2]


def test_changes_that_a_backbone_has_no_modules_for_are_said_to() -> None:
    assert "last block's masks instead" in str(not_on("ours", "last block's masks instead", "gru4rec"))
    assert not_on("ours", "last block's masks instead", "bert4rec") is None
    assert "a free gate for each item" in str(not_on("ours", "a free gate for each item", "replay-sasrec"))
    assert not_on("ours", "masks inside too", "replay-sasrec") is None
    assert not_on("ours", "unseen users", "gru4rec") is None
    assert plan_cells(PlanOptions("backbones", methods=("ours",), variants=tuple(ABLATIONS)))


@pytest.mark.parametrize("variant", ABLATIONS)
def test_each_change_of_the_masks_can_be_made(variant: str, make_sasrec: Callable[..., SASRec]) -> None:
    settings = CellSettings(config=ABLATIONS[variant].config, encoder="hashing")
    config = mask_config("ours", settings)
    masks = inject_request_masks(make_sasrec(), config)
    layers = masks.peft_config[masks.active_adapters[0]].masked_modules
    assert layers
    if variant == "last block's masks instead":
        assert {name.split(".layer.")[1][0] for name in layers} == {"1"}
