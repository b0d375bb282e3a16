"""Runs the contract of ``checks.py`` over the ``BACKBONES`` of each test file."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib, checks.py is not importable otherwise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is not None and "backbone" in metafunc.fixturenames:
        backbones = metafunc.module.BACKBONES
        metafunc.parametrize("backbone", backbones, ids=[backbone.name for backbone in backbones])
