"""Results of earlier versions are recognised: the digests of their cells stay the same."""

from __future__ import annotations

import json
from pathlib import Path

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

EARLIER = json.loads((Path(__file__).parent / "digests_9aae9b6.json").read_text())
SETTINGS = {
    "quick": {"matrix": "quick", "data": ["films"]},
    "full": {"matrix": "full", "data": ["films"], "seeds": [0]},
    "other settings": {
        "matrix": "others", "data": ["films"], "methods": ["ours", "reranker"], "seeds": [4], "steps": 7, "epochs": 2,
        "backbones": ["bert4rec"], "encoder": "hashing", "max_users": 9, "language_model": "a", "title_column": "title",
    },
    "real language": {
        "matrix": "real-language", "data": ["films"], "dialogues": "requests.jsonl", "stage": "test", "seeds": [0],
        "variants": ["gate scale"],
    },
    "transfer": {"matrix": "transfer", "data": ["films"], "target": "games", "same_items": True, "seeds": [0]},
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


@pytest.mark.parametrize("name", SETTINGS)
def test_cells_keep_their_digests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cramer_peft, "__version__", EARLIER["cramer_peft"])  # a part of each digest
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in SETTINGS[name].items()}
    cells = plan_cells(BenchmarkSettings(**settings).plan_options())
    assert {cell.name for cell in cells} == set(EARLIER["cells"][name])
    for cell in cells:
        data = load_data(cell.source, cell.protocol)
        cell_digest, backbone = EARLIER["cells"][name][cell.name]
        assert backbone_digest(cell, data.digest) == backbone, cell.name
        if METHODS[cell.method].config is None or peft.__version__ == EARLIER["peft"]:  # masks' configurations name it
            assert digest_of(cell, data) == cell_digest, cell.name
