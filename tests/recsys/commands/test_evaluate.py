import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
Run = Callable[..., Any]


def test_evaluate_says_what_to_do(trained: Path, stated: Path, run: Run) -> None:
    given = ("evaluate", "--adapter", trained, "--data", stated)
    assert "expected 'test' or 'validation'" in run(*given, "--stage", "final").message
    assert "expected one of leave-one-out, temporal" in run(*given, "--protocol", "random").message


def test_the_columns_are_those_of_the_file(trained: Path, stated: Path, tmp_path: Path, run: Run) -> None:
    settings, output = tmp_path / "settings.json", tmp_path / "figures.json"
    given = ("evaluate", "--adapter", trained, "--data", stated, "--config", settings, "--output", output)
    settings.write_text(json.dumps({"columns": {"attribute_column": "genres"}, "training": {"users": 3}}))
    ended = run(*given)
    assert ended.code == 0, ended.error
    assert json.loads(output.read_text())["tracks"]["empty"]["users"] == 30
    settings.write_text(json.dumps({"columns": {"min_attribute_items": 20}}))
    assert "the same columns" in run(*given).message
    settings.write_text(json.dumps({"columns": {"attribute": "genres"}}))
    assert "columns: unknown field 'attribute'" in run(*given).message


def test_an_output_that_cannot_be_written_is_found_first(trained: Path, stated: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    given = ("evaluate", "--adapter", trained, "--data", stated, "--output")
    for output, message in ((tmp_path / "file" / "x.json", "is not a folder"), (tmp_path, "is a folder")):
        ended = run(*given, output)
        assert message in " ".join(ended.message.split())
        assert "reading" not in ended.out
