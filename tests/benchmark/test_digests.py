"""Stored results are recognised as long as nothing changes what they are: the digests of their cells stay the same.

After a change of the defaults they do not, and the file is written anew: python tests/benchmark/test_digests.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import pytest
from benchmark.cells import backbone_digest
from benchmark.data import load_data
from benchmark.methods import METHODS
from benchmark.plan.planner import plan_cells
from benchmark.run.run_cell import digest_of
from benchmark.settings import BenchmarkSettings

import cramer_peft

pytest.importorskip("pandas")

FILE = Path(__file__).parent / "digests.json"
SETTINGS: dict[str, dict[str, Any]] = {
    "quick": {"matrix": "quick", "data": ["films"]},
    "full": {"matrix": "full", "data": ["films"], "seeds": [0]},
    "other settings": {
        "matrix": "others", "data": ["films"], "methods": ["ours", "reranker"], "seeds": [4], "steps": 7, "epochs": 2,
        "backbones": ["bert4rec"], "encoder": "hashing", "max_users": 9, "language_model": "a", "title_column": "title",
    },
    "real language": {
        "matrix": "real-language", "data": ["films"], "dialogues": "requests.jsonl", "stage": "test", "seeds": [0],
        "variants": ["a free gate for each item"],
    },
    "transfer": {"matrix": "transfer", "data": ["films"], "target": "games", "seeds": [0]},
}  # fmt: skip


def write_data(folder: Path) -> None:
    """Two data sets of 20 items, and a file of one request."""
    for name, kinds in (("films", ("Action", "Comedy")), ("games", ("Action", "Puzzle"))):
        (folder / name).mkdir()
        items = [f"i{item}\t{name} {item}\t{kinds[item % 2]}" for item in range(20)]
        seen = [f"u{user}\ti{(user + 3 * time) % 20}\t{time}" for user in range(6) for time in range(5)]
        for kind, head, lines in (
            ("item", "item_id:token\ttitle:token_seq\tgenres:token_seq", items),
            ("inter", "user_id:token\titem_id:token\ttimestamp:float", seen),
        ):
            (folder / name / f"{name}.{kind}").write_text("\n".join([head, *lines]) + "\n")
    request = {"dialogue": "1", "history": ["films 1"], "request": "like [movie]", "target": "films 2"}
    (folder / "requests.jsonl").write_text(json.dumps(request) + "\n")


def digests(name: str) -> dict[str, tuple[str, str, bool]]:
    """For each cell of some settings, in a folder of data: its digest, its backbone's, and whether it has masks."""
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in SETTINGS[name].items()}
    found = {}
    for cell in plan_cells(BenchmarkSettings(**settings).plan_options()):
        data = load_data(cell.source, cell.protocol)
        masked = METHODS[cell.method].config is not None
        found[cell.name] = digest_of(cell, data), backbone_digest(cell, data.digest), masked
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_cells_keep_their_digests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = json.loads(FILE.read_text())
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cramer_peft, "__version__", earlier["cramer_peft"])  # a part of each digest
    found = digests(name)
    assert found.keys() == earlier["cells"][name].keys()
    for cell, (own, backbone, masked) in found.items():
        assert backbone == earlier["cells"][name][cell][1], cell
        if not masked or peft.__version__ == earlier["peft"]:  # masks' configurations name it
            assert own == earlier["cells"][name][cell][0], cell


if __name__ == "__main__":
    FILE = FILE.absolute()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        write_data(Path(folder))
        cells = {name: {cell: found[:2] for cell, found in digests(name).items()} for name in SETTINGS}
    versions = {"cramer_peft": cramer_peft.__version__, "peft": peft.__version__}
    FILE.write_text(json.dumps({**versions, "cells": cells}, indent=1) + "\n")
