"""Counts the calls that the package makes on its main roads.

A reader who follows a road by hand makes as many jumps. ``python tests/road.py`` prints a table.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import cramer_peft
from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks

ROOT = str(Path(cramer_peft.__file__).parent) + os.sep
WIDTH = 16


@dataclass(frozen=True)
class Road:
    """The calls of Python functions in the package's own files, in order.

    Attributes:
        steps: File, relative to the package, and function of each call.
    """

    steps: tuple[tuple[str, str], ...]

    @property
    def calls(self) -> int:
        """Number of calls."""
        return len(self.steps)

    @property
    def files(self) -> int:
        """Number of distinct files."""
        return len({file for file, _ in self.steps})

    @property
    def changes(self) -> int:
        """How often a call is in another file than the one before it; the first counts too."""
        files = [file for file, _ in self.steps]
        return sum(file != before for before, file in zip([None, *files], files, strict=False))

    def calls_by_file(self) -> dict[str, int]:
        """Number of calls in each file, most first."""
        return dict(Counter(file for file, _ in self.steps).most_common())


def count(call: Callable[[], Any]) -> Road:
    """The calls that ``call`` makes in the package, as Python's profiler sees them: comprehensions count too."""
    steps: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            steps.append((frame.f_code.co_filename.removeprefix(ROOT), frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return Road(tuple(steps))


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4)).eval()


def _config(texts: bool) -> RequestMaskConfig:
    if texts:
        return RequestMaskConfig(target_modules=["0"], encoder="hashing", encoder_options={"dim": WIDTH})
    return RequestMaskConfig(target_modules=["0"], request_dim=WIDTH)


def forward(texts: bool) -> Road:
    """A warm call of one masked linear layer without gradients, with a text or a vector for each of two rows."""
    masks = inject_request_masks(_linear(), _config(texts)).eval()
    x = torch.randn(2, 8)
    request = ["show me more", "avoid it"] if texts else torch.randn(2, WIDTH)
    with torch.no_grad():
        masks(x, request=request)  # the first call fills caches
        return count(lambda: masks(x, request=request))


def inject() -> Road:
    """Putting masks on one linear layer, with requests as vectors."""
    inject_request_masks(_linear(), _config(texts=False))  # the first call imports what it needs
    model, config = _linear(), _config(texts=False)
    return count(lambda: inject_request_masks(model, config))


def load() -> Road:
    """Loading a saved adapter with an encoder of texts onto one linear layer."""
    with tempfile.TemporaryDirectory() as folder:
        model = _linear()
        masks = inject_request_masks(model, _config(texts=True))
        masks.save_pretrained(folder)
        masks.unload()
        load_request_masks(model, folder).unload()  # the first call imports what it needs
        return count(lambda: load_request_masks(model, folder))


ROADS: dict[str, Callable[[], Road]] = {
    "a call, vectors": lambda: forward(texts=False),
    "a call, texts": lambda: forward(texts=True),
    "inject_request_masks": inject,
    "load_request_masks": load,
}


def main() -> None:
    """Print the table, and where most calls of each road are."""
    print(f"{'road':<24}{'calls':>7}{'files':>7}{'changes':>9}  most calls in")
    for name, measure in ROADS.items():
        road = measure()
        most = ", ".join(f"{file} {calls}" for file, calls in list(road.calls_by_file().items())[:3])
        print(f"{name:<24}{road.calls:>7}{road.files:>7}{road.changes:>9}  {most}")


if __name__ == "__main__":
    main()
