"""The names that users and the recommender may import, and what importing the package brings in."""

import subprocess
import sys
from importlib import import_module

import pytest

import cramer_peft

PACKAGES = [f"cramer_peft{part}" for part in ("", ".encoders", ".errors", ".storage", ".training")]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert not hasattr(module, "no_such_name")


def test_the_package_itself_has_sixteen_names_at_most() -> None:
    assert len(cramer_peft.__all__) <= 16


def test_what_is_slow_to_import_waits_for_its_first_use() -> None:
    code = (
        "import sys, cramer_peft.training; before = set(sys.modules)\n"
        "from cramer_peft.encoders import RequestReader; from cramer_peft.training import ResumableTrainer\n"
        "slow = {'cramer_peft.encoders.reader', 'cramer_peft.training.trainer'}\n"
        "product = {name for name in before if name.startswith('cramer_peft.recsys')}\n"
        "print(slow & before, slow - set(sys.modules), product)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "set() set() set()", run.stderr


def test_the_package_and_its_command_start_without_torch() -> None:
    code = (
        "import sys, cramer_peft; cramer_peft.errors.DataError; import cramer_peft.recsys.reading\n"
        "print(sorted({'torch', 'peft', 'transformers'} & set(sys.modules)), 'validate' in dir(cramer_peft))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "[] True", run.stderr


def test_modules_of_the_package_are_attributes() -> None:
    code = "import cramer_peft; print(cramer_peft.encoders.make_encoder.__name__, cramer_peft.training.Checkpoints)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.startswith("make_encoder"), run.stderr
