"""The tutorials' notebooks run, cell by cell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT

NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
RUN = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from run_notebooks import run_file

run_file(Path(sys.argv[2]), write=False)
"""


def test_there_are_tutorials() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", RUN, str(DOCS), str(path)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    before = path.read_bytes()
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == []  # it writes into a folder of its own


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_that_shows_what_it_prints(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    for cell in notebook["cells"]:
        if (
            cell["cell_type"] == "code"
            and "print(" in "".join(cell["source"])
            and "def " not in "".join(cell["source"])
        ):
            assert cell["outputs"], "run docs/run_notebooks.py --write"
