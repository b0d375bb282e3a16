"""``python -m cramer_peft`` is the command ``cramer-peft``, for launchers that start a module."""

import subprocess
import sys

import pytest

pytest.importorskip("typer", reason="extra demo")


def test_the_module_is_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "cramer_peft", "--help"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    for name in ("train", "evaluate", "recommend"):
        assert name in run.stdout
