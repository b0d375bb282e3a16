from __future__ import annotations

from pathlib import Path

import pytest
from benchmark.cells import CellSettings, DataSource
from benchmark.methods import CRAMER, METHODS, ONLY_OWN_REQUESTS
from benchmark.plan.matrices import MATRICES
from benchmark.plan.planner import PlanOptions, plan_cells
from benchmark.settings import BenchmarkSettings
from benchmark.variants import ABLATIONS, HOLD_OUTS

from cramer_peft.errors import ConfigError


def test_the_full_matrix_has_every_method_for_every_seed_and_every_change_once() -> None:
    cells, left_out = plan_cells(PlanOptions()), {"ours, shuffled requests", *ONLY_OWN_REQUESTS}
    assert {(cell.method, cell.seed) for cell in cells if cell.variant is None} == {
        (method, seed) for method in METHODS if method not in left_out for seed in (0, 1, 2)
    }
    assert sorted(cell.variant for cell in cells if cell.variant) == sorted([*ABLATIONS, *HOLD_OUTS])
    assert len({cell.name for cell in cells}) == len(cells)


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
    ("matrix", "variant", "methods"),
    [
        ("backbones", "no hidden layer", ("ours",)),
        ("paper", "drop ratio 0.05", (CRAMER,)),
        ("stated", "unseen texts", MATRICES["stated"].methods),
    ],
)
def test_variants_alone_are_run_of_the_methods_that_they_change(
    matrix: str, variant: str, methods: tuple[str, ...]
) -> None:
    options = BenchmarkSettings(matrix, ("films",), backbones=("sasrec",), variants=(variant,), seeds=(0,))
    cells = [(cell.method, cell.variant) for cell in plan_cells(options.plan_options())]
    varied = [(method, variant) for method in methods if method != "frozen"]
    assert cells == [*((method, None) for method in methods), *varied]


def test_variants_of_ours_are_run_beside_other_methods() -> None:
    options = PlanOptions("quick", methods=("frozen",), variants=("no hidden layer",))
    assert [(cell.method, cell.variant) for cell in plan_cells(options)] == [
        ("frozen", None),
        ("ours", "no hidden layer"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions("whole"), "matrix: found 'whole'"),
        (PlanOptions("others"), "give --data"),
        (PlanOptions(methods=("magic",)), "method: found 'magic'"),
        (PlanOptions(protocols=("random",)), "protocol: found 'random'"),
        (PlanOptions(variants=("rank 99",)), "variant: found 'rank 99'"),
        (
            PlanOptions("paper", methods=("ours", "lora"), variants=("drop ratio 0.05",)),
            "found 'drop ratio 0.05' for 'ours', 'lora', .* change the method 'CRAMER' alone",
        ),
        (
            PlanOptions("stated", (DataSource("a"),), methods=("frozen",), variants=("unseen users",)),
            "found 'unseen users' for 'frozen', .* change methods other than 'frozen' alone",
        ),
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
