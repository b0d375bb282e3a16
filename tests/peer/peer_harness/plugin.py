"""pytest plugin: aims PEFT's tests at our configuration, and reports what came out as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import transformers

from cramer_peft import RequestMaskConfig
from peer_harness.cases import CASES, MIXED_BY_TEST
from peer_harness.local_models import MODEL_IDS, write_models
from peer_harness.overrides import _ours  # noqa: F401 - a fixture for every test

# What the suites import from packages that are needed by other tests of PEFT's only.
_STUBS = {"datasets": "load_dataset", "diffusers": "StableDiffusionPipeline"}

pytest.register_assert_rewrite("peft_tests.testing_common")

_passed: list[str] = []
_failed: dict[str, str] = {}
_skipped: Counter[str] = Counter()
_deselected = 0


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    write_models()
    missing = {name: attribute for name, attribute in _STUBS.items() if find_spec(name) is None}
    for name, attribute in missing.items():
        stub = ModuleType(name)
        stub.__spec__ = ModuleSpec(name, None)
        setattr(stub, attribute, type(attribute, (), {}))
        sys.modules[name] = stub
    try:
        result = yield
    finally:
        for name in missing:
            del sys.modules[name]
    _know_models()
    return result


def _know_models() -> None:
    """Their helper goes online for names that it has not seen yet."""
    for name, module in sys.modules.items():
        if name.endswith("testing_utils") and hasattr(module, "_HUB_MODEL_ACCESSES"):
            module._HUB_MODEL_ACCESSES.update(dict.fromkeys(MODEL_IDS, 1))


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put our cases in the place of theirs, wherever a test is parametrized over one of their lists."""
    ours = CASES.get(metafunc.module.__name__.rpartition(".")[2], {})
    marks = metafunc.definition.own_markers
    for index, mark in enumerate(marks):
        if mark.name != "parametrize" or len(mark.args) < 2:
            continue
        for name, cases in ours.items():
            if mark.args[1] is getattr(metafunc.module, name):
                marks[index] = pytest.mark.parametrize(mark.args[0], cases, **mark.kwargs).mark
        pair = MIXED_BY_TEST.get(metafunc.definition.originalname)
        if pair is not None:
            marks[index] = pytest.mark.parametrize(mark.args[0], [("RequestMask", *pair)]).mark


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that take a configuration of ours."""
    global _deselected
    ours = [item for item in items if _takes_ours(item)]
    _deselected = len(items) - len(ours)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(ours)])
    items[:] = ours


def _takes_ours(item: pytest.Item) -> bool:
    callspec: Any = getattr(item, "callspec", None)
    params: dict[str, Any] = callspec.params if callspec is not None else {}
    if params.get("model_id") in MODEL_IDS and params.get("config_kwargs", {}).get("gate") is not None:
        # Every model runs with one gate, in turn: each with each would take twice the time.
        gates = ("low_rank", "scale")
        if params["config_kwargs"]["gate"] != gates[MODEL_IDS.index(params["model_id"]) % 2]:
            return False
    return any(value is RequestMaskConfig or isinstance(value, RequestMaskConfig) for value in params.values())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _failed[report.nodeid] = crash.message if crash is not None else str(report.longrepr)
    elif report.skipped:
        _skipped[str(report.longrepr[2]).removeprefix("Skipped: ")] += 1  # type: ignore[index]
    elif report.when == "call":
        _passed.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = {
        "passed": len(_passed),
        "failed": _failed,
        "skipped": dict(_skipped),
        "deselected": _deselected,
        "versions": {module.__name__: module.__version__ for module in (peft, torch, transformers)},
    }
    Path(os.environ["PEER_REPORT"]).write_text(json.dumps(report))
