"""The limits that keep the code easy to find one's way in; docs/architecture.md describes the shape itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE, EXAMPLES = ROOT / "cramer_peft", ROOT / "examples"
QUESTIONS = {"What", "Whether", "How", "Whose", "Where", "Which"}
Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _sources(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=lambda folder: folder.name)
def test_no_file_is_longer_than_450_lines(folder: Path) -> None:
    counts = {path: len(text.splitlines()) for path, text in _sources(folder).items()}
    assert {path: count for path, count in counts.items() if count > 450} == {}


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=lambda folder: folder.name)
def test_no_function_is_longer_than_60_lines(folder: Path) -> None:
    found = {
        f"{path}:{node.lineno} {node.name}": _lines(node)
        for path, text in _sources(folder).items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _lines(node) > 60
    }
    assert found == {}


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=lambda folder: folder.name)
def test_docstrings_state_and_do_not_ask(folder: Path) -> None:
    found = [
        f"{path}: {docstring.splitlines()[0]}"
        for path, text in _sources(folder).items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node))
        if docstring.split()[0].rstrip(",:;") in QUESTIONS
    ]
    assert len(found) <= 20, "\n".join(found)


def test_the_package_has_few_files_in_its_root_and_few_lines_in_all() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 14
    # 14,800 when the package got its shape; the checks of models, data and files from strangers took 2,000 more. Row
    # values, masked outputs, added items and catalogues of a shop's size took another 1,850, of which little could go.
    # Hearing what people say, and what a catalogue knows exactly, took 3,500; tables, scores of many rows, the page and
    # the hub 2,100; what new users stumbled over in one session the last 400.
    assert sum(len(text.splitlines()) for text in _sources(PACKAGE).values()) <= 26_300


@pytest.mark.parametrize("folder", [PACKAGE, EXAMPLES], ids=lambda folder: folder.name)
def test_no_modules_import_each_other_in_a_circle(folder: Path) -> None:
    """Imports inside functions and for types alone count."""
    names = {_module_name(path, folder): path for path in _sources(folder)}
    graph = {name: set(_imports(name, ROOT / path, names)) for name, path in names.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_files_that_the_architecture_page_names_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = set(re.findall(r"(?<![\w/<])(?:\w+/)*\w+\.py\b", page))
    assert len(found) > 40
    bases = (ROOT, PACKAGE, PACKAGE / "recsys")
    assert [path for path in sorted(found) if not any((base / path).exists() for base in bases)] == []


def _module_name(path: str, folder: Path) -> str:
    parts = list(Path(path).with_suffix("").parts)
    parts = parts[1:] if folder == EXAMPLES else parts  # the examples are packages of their own
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(name: str, path: Path, known: Container[str]) -> Iterator[str]:
    """Yield the names of the modules in ``known`` that a module imports."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                module = f"{source}.{alias.name}"
                module = module if module in known else source
                if module in known and module != name:
                    yield module
