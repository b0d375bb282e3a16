import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import cramer_peft
from cramer_peft.recsys.commands import app as cli
from cramer_peft.recsys.commands.options import TABLES

COMMANDS = ("demo", "train", "evaluate", "recommend", "play", "score")


def test_usage_errors_are_typers() -> None:
    runner = CliRunner()
    for arguments in (["recommend"], ["recommend", "--adapter", "x", "--history", "y", "--k", "0"], ["fly"]):
        result = runner.invoke(cli.app, arguments)
        assert result.exit_code == 2
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS)):
        result = runner.invoke(cli.app, arguments)
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_it_says_its_version() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"cramer-peft {cramer_peft.__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_shows_its_default_or_says_what_happens_without_it(name: str) -> None:
    command: Any = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    silent = {
        "config",
        "checkpoint",
        "checkpoint_folder",
        "data",
        "interactions",
        "items",
        "title_column",
        "attribute_column",
        "attribute_separator",
    }
    silent |= {"users", "before", "request", "backbone"} if name != "train" else set()
    for parameter in command.params:
        if not parameter.required and parameter.name not in silent and not parameter.is_flag:
            shown = parameter.show_default and parameter.default is not None
            assert shown or "By default" in parameter.help, parameter.name


def test_a_command_takes_few_options() -> None:
    commands: Any = get_command(cli.app)
    assert sorted(commands.commands) == sorted(COMMANDS)
    for name, command in commands.commands.items():
        assert 0 < sum(getattr(parameter, "rich_help_panel", None) != TABLES for parameter in command.params) <= 14, (
            name
        )
        assert all(parameter.help for parameter in command.params), name


def test_the_command_itself(made: Path, ended: type[Any]) -> None:
    command = Path(sys.executable).with_name("cramer-peft")
    start = [str(command)] if command.exists() else [sys.executable, "-m", "cramer_peft"]
    arguments = ["recommend", "--adapter", str(made), "--history", "Tail 4"]
    environment = {**os.environ, "COLUMNS": "40", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*start, *arguments], check=False, capture_output=True, text=True, env=environment)
    message = ended(run.returncode, run.stdout, run.stderr).message
    assert message.startswith("No title matches 'Tail 4'. Nearest: 'Tale 4 of war'")
    assert message.count("\n") == 1  # not folded to the width of a terminal


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    """What is heavy is imported when a command runs."""
    code = "import sys; from cramer_peft.recsys.commands import app; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert f"cramer_peft.recsys.commands.{name}" in loaded
    library = ("torch", "peft", "transformers", "pandas", "matplotlib")
    heavy = (*library, "cramer_peft.recsys.recommender", "cramer_peft.recsys.commands.demo_run")
    assert not set(heavy) & set(loaded)
