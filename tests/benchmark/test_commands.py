"""The commands: few options, and more settings from a file that the documentation lists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmark import run_benchmark as runner
from benchmark.__main__ import benchmark
from benchmark.cells import DataSource
from benchmark.console import make_app, run_command
from benchmark.plan.planner import PlanOptions
from benchmark.settings import BenchmarkSettings
from benchmark.speed.__main__ import speed
from benchmark.speed.run_speed import SpeedOptions
from typer.testing import CliRunner

from cramer_peft.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [benchmark, speed])
def test_a_command_has_a_dozen_options_at_most(command: Callable[..., None]) -> None:
    options = typer.main.get_command(make_app(command)).params
    assert 5 < len([option for option in options if option.name != "help"]) <= 12


@pytest.mark.parametrize(("page", "kind"), [("benchmark.md", BenchmarkSettings), ("measure-speed.md", SpeedOptions)])
def test_the_documentation_lists_every_field(page: str, kind: type) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert {field.name for field in fields(kind)} <= set(rows)


@pytest.mark.parametrize("command", [benchmark, speed])
def test_a_wrong_file_is_refused_before_anything_runs(command: Callable[..., None], tmp_path: Path) -> None:
    config, output = tmp_path / "config.json", tmp_path / "out"
    config.write_text('{"ruonds": 3}')
    ended = CliRunner().invoke(make_app(command), ["--config", str(config), "--output", str(output)])
    assert isinstance(ended.exception, ConfigError)
    assert "found the field 'ruonds', expected one of" in str(ended.exception)
    assert not output.exists()


def test_an_option_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(runner, "run_benchmark", lambda *arguments: seen.append(arguments))
    config = tmp_path / "config.json"
    values = {"matrix": "quick", "seeds": [1, 2], "epochs": 3, "steps": 4, "target": "games", "title_column": "name"}
    config.write_text(json.dumps({**values, "data": ["films"], "variants": ["gate scale"], "budget_minutes": 5}))
    arguments = ["--config", str(config), "--seed", "7", "--epochs", "1", "--output", str(tmp_path / "out")]
    ended = CliRunner().invoke(make_app(benchmark), arguments)
    assert ended.exit_code == 0, ended.output
    ((plan, output, workers, budget, dry, _),) = seen
    assert plan == PlanOptions(
        "quick",
        (DataSource("films", "name"),),
        variants=("gate scale",),
        seeds=(7,),
        steps=4,
        epochs=1,
        target=DataSource("games"),
    )
    assert (output, workers, budget, dry) == (tmp_path / "out", 2, 5, False)


HELP = """
import runpy, sys
for module in ("benchmark", "benchmark.speed", "teaching"):
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code
"""


def test_the_commands_run_from_the_folder_of_the_examples() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    ended = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=ROOT / "examples",
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for text in ("Compare methods on real data", "Time requests in pairs", "Teach the request reader"):
        assert text in ended.stdout


def test_an_error_is_a_message_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--matrix", "whole", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_command(benchmark)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: matrix: found 'whole', expected one of full, headline")
