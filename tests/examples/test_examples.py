"""The examples, and the Python blocks of the documentation, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {
    "custom_model.py": "restored by unload, bit for bit: True",
    "decoder_generate.py": "a row without a request generates what the frozen model does: True",
    "new_items.py": "the items are added",
    "large_catalogue.py": "the whole catalogue was ranked",
    "merge_table.py": "request masks change the weights and give them back, bit for bit: True",
    "sampled_generator.py": "a blank request leaves the lists as they are: True",
    "score_rows.py": "every way writes the same files, and a list for every user: True",
    "training_memory.py": "a step on a sample keeps the same for every size: True",
    "training_profile.py": "every part was timed: True",
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # one titled "fragment" does not match
RUN_PAGES = """
import runpy, sys, torch
for page in sys.argv[1:]:
    torch.set_grad_enabled(True)
    runpy.run_path(page, run_name="page")
"""


def run(arguments: list[str], folder: Path) -> str:
    paths = [str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]  # for pages that import benchmark
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,  # nothing that they write may land in the checkout
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(LINES)


@pytest.mark.parametrize("name", sorted(LINES))
def test_example(name: str, tmp_path: Path) -> None:
    assert LINES[name] in run([str(ROOT / "examples" / name)], tmp_path).splitlines()
    assert list(tmp_path.iterdir()) == []


def test_the_blocks_of_the_documentation(tmp_path: Path) -> None:
    pages = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        if blocks:
            pages.append(tmp_path / f"page_{page.stem}.py")
            pages[-1].write_text("\n".join(blocks), encoding="utf-8")
    assert len(pages) >= 6
    run(["-c", RUN_PAGES, *map(str, pages)], tmp_path)
