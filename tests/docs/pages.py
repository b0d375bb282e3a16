"""The pages, and the scripts of docs/, for the tests beside this file."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """Return a script of ``docs/`` as a module."""
    found = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def texts() -> dict[str, str]:
    """Return the text of README.md, CONTRIBUTING.md, every page and every notebook, by path."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")), *sorted(DOCS.rglob("*.ipynb"))]
    return {path.relative_to(ROOT).as_posix(): _text(path) for path in paths}


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    code = {"code": "```python\n{}\n```", "markdown": "{}"}
    return "\n\n".join(code[cell["cell_type"]].format("".join(cell["source"])) for cell in cells)
