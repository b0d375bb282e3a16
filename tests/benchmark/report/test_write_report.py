from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmark.cell_files import CellResult
from benchmark.cells import Cell, DataSource
from benchmark.report.write_report import build_report, write_report


def test_cells_without_a_result_are_told(
    results: list[CellResult], result: Callable[..., CellResult], tmp_path: Path
) -> None:
    empty = CellResult(
        Cell(DataSource("films"), "temporal", "sasrec", "reranker", 0).identity, "d", "empty", "no weights"
    )
    failed = result("frozen", 0, {"truthful/ndcg": [0.4]})
    failed.figures["checks"].append({"name": "the triple is possible", "holds": False, "detail": "0 and 1"})
    document = write_report([*results, empty, failed], tmp_path, "python -m benchmark", 60)
    text = (tmp_path / "results.md").read_text()
    assert "| films, temporal, sasrec, reranker, 0 | empty | no weights |" in text
    assert "| films, leave-one-out, sasrec, frozen, 0 | the triple is possible | 0 and 1 |" in text
    assert json.loads((tmp_path / "results.json").read_text())["groups"] == json.loads(json.dumps(document["groups"]))


def test_the_markdown_holds_the_command_and_the_figures(results: list[CellResult]) -> None:
    _, text = build_report(results, "python -m benchmark --matrix quick", 90)
    assert "`python -m benchmark --matrix quick`" in text
    assert "1.5 minutes" in text
    assert "| ours | 0.500 [" in text
    assert "torch " in text
