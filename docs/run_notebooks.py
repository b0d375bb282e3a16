"""Run the tutorials' notebooks, cell by cell, without Jupyter.

python docs/run_notebooks.py             # run all
python docs/run_notebooks.py --write     # and store what they print in them
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"


def run(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Run the code cells in order, in one namespace and the current folder; yield each with what it prints."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(
                    compile(
                        "".join(cell["source"]), f"<cell {number}>", "exec"
                    ),
                    names,
                )
            yield cell, printed.getvalue()


def run_file(path: Path, write: bool) -> None:
    """Run a notebook in a folder of its own, and store its output in it if asked to."""
    path = path.resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for cell, printed in run(notebook):
                keep = printed and "remove_output" not in cell["metadata"].get(
                    "tags", ()
                )
                lines = printed.splitlines(keepends=True)
                cell["outputs"] = (
                    [{"name": "stdout", "output_type": "stream", "text": lines}]
                    if keep
                    else []
                )
        finally:
            os.chdir(before)
    if write:
        path.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    for found in sorted(TUTORIALS.glob("*.ipynb")):
        print(found.name, flush=True)
        run_file(found, "--write" in sys.argv[1:])
