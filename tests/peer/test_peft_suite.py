"""PEFT's own test suite, unedited, over our configuration; ``run.py`` beside this file runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
EXIT_NOT_FETCHED = 3


def run_suite(cache: Path, report: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "run.py"), "--cache", str(cache), "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_NOT_FETCHED:
        pytest.skip(done.stderr.strip())
    assert report.exists(), done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def explained(test: str, error: str) -> str | None:
    """Which expected failure this is."""
    for failure in EXPECTED["failed"]:
        if re.search(failure["test"], test) and re.search(failure["error"], error):
            return str(failure["test"])
    return None


def test_peft_suite(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    cache = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("peft-suite") if cache is not None else tmp_path
    found = run_suite(folder, tmp_path / "report.json")

    unexplained = {test: error for test, error in found["failed"].items() if explained(test, error) is None}
    assert not unexplained
    for failure in EXPECTED["failed"]:
        names = [test for test, error in found["failed"].items() if explained(test, error) == failure["test"]]
        assert len(names) == failure["count"], (failure["test"], names)
    assert found["skipped"] == {skip["reason"]: skip["count"] for skip in EXPECTED["skipped"]}
    assert found["passed"] == EXPECTED["passed"]


def test_page_lists_what_is_expected() -> None:
    page = PAGE.read_text()
    assert f"{EXPECTED['passed']} pass" in page
    for skip in EXPECTED["skipped"]:
        assert f"| {skip['count']} | `{skip['reason']}` |" in page
    for failure in EXPECTED["failed"]:
        assert f"| {failure['count']} | `{failure['test']}` |" in page
