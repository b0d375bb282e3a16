"""Time importing the package, and injecting into a model of many layers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from torch import nn

from benchmark.speed.figures import spread_of
from cramer_peft import RequestMaskConfig, inject_request_masks


def startup_figures(rounds: int, layers: int = 1000) -> dict[str, Any]:
    """Return ``import`` by :func:`import_ratio`, ``layers``, and ``injection_seconds`` for so many layers."""
    return {"import": import_ratio(rounds), "layers": layers, "injection_seconds": injection_seconds(layers)}


def import_ratio(rounds: int) -> dict[str, float]:
    """Time importing cramer_peft against importing peft, each in a new process, in pairs.

    Returns:
        ``seconds``, ``peft_seconds`` (medians of whole processes), ``ratio``, ``low`` and ``high`` (quartiles).
    """
    ours, theirs = [], []
    for module in ("cramer_peft", "peft"):  # from now on the files are in the page cache
        _import_seconds(module)
    for _ in range(rounds):
        theirs.append(_import_seconds("peft"))
        ours.append(_import_seconds("cramer_peft"))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "seconds": statistics.median(ours),
        "peft_seconds": statistics.median(theirs),
        **spread_of(ratios),
    }


def _import_seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def injection_seconds(layers: int = 1000, width: int = 64) -> float:
    """Return the seconds to put masks on a model of ``layers`` linear layers."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    config = RequestMaskConfig(target_modules="all-linear", request_dim=64)
    start = time.perf_counter()
    inject_request_masks(model, config)
    return time.perf_counter() - start
