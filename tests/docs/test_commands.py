"""The commands and options that the pages name are there."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
from pages import ROOT, texts

from cramer_peft.recsys.commands.app import app

OTHERS = {"pip", "venv", "pytest", "mkdocs", "http.server"}
OPTIONS_OF_OTHERS = {"--no-deps", "--strict", "--site-dir", "--check", "--cpu"}
BLOCK = re.compile(r"^```(?:bash|text)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
COMMAND = re.compile(
    r"(?:^|[\s/])(?:(?P<own>cramer-peft|python3? -m cramer_peft|-m cramer_peft)"
    r"(?:\s+(?P<sub>(?!mask state)[a-z][\w-]*))?(?=\s|$)"
    r"|python3? (?:-m (?P<module>[\w.]+)|(?P<script>[\w/]+\.py)))(?P<rest>[^&|\n]*)"
)
OPTION = re.compile(r"(?:^|\s|\[)(--[a-z][\w-]*)")


@cache
def own() -> dict[str, set[str]]:
    """Return the options of each subcommand of ``cramer-peft``."""
    group = typer.main.get_command(app)
    commands = group.commands.items()  # type: ignore[attr-defined]
    found = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands
    }
    return {name: {*options, "--help"} for name, options in found.items()}


@cache
def options_of(path: str) -> frozenset[str]:
    """Return the options that a script names, as texts or as parameters of typer, without running it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    texts_ = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {text.split("/")[0] for text in texts_ if text.startswith("--")}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None and "typer.Option" in ast.unparse(node.annotation):
            name = node.arg.replace("_", "-")
            found |= {f"--{name}", f"--no-{name}"}
    settings = Path(path).parent / "settings.py"  # the example server makes options of its settings
    if Path(path).name == "__main__.py" and (ROOT / settings).is_file():
        nodes = ast.walk(ast.parse((ROOT / settings).read_text(encoding="utf-8")))
        fields = [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
        found |= {f"--{field.id.replace('_', '-')}" for field in fields if isinstance(field, ast.Name)}
    return frozenset({*found, "--help"})


def source_of(module: str) -> str | None:
    """Return the file that ``python -m module`` runs, if it is in this project."""
    for folder in ("examples/", ""):
        base = folder + module.replace(".", "/")
        for path in (f"{base}/__main__.py", f"{base}.py"):
            if (ROOT / path).is_file():
                return path
    return None


def script_of(name: str) -> str | None:
    return next((path for path in (name, f"examples/{name}") if (ROOT / path).is_file()), None)


def commands(text: str) -> Iterator[re.Match[str]]:
    """Yield each command of a page's blocks and of its code inside sentences."""
    code = [*BLOCK.findall(text), *(found.replace("\n", " ") for found in INLINE.findall(BLOCK.sub("", text)))]
    for piece in code:
        whole = re.sub(r"\s#.*", "", piece.replace("\\\n", " "))
        whole = re.sub(r'"[^"\n]*"|\'[^\'\n]*\'', "TEXT", whole)
        yield from COMMAND.finditer(whole)


def findings(text: str) -> Iterator[str]:
    for found in commands(text):
        used = set(OPTION.findall(found["rest"]))
        if found["own"]:
            if found["sub"] is None:
                known = {"--help", "--version"}
            elif found["sub"] not in own():
                yield f"cramer-peft has no {found['sub']}"
                continue
            else:
                known = own()[found["sub"]]
        elif (found["module"] or "").split(".")[0] in OTHERS:
            continue
        else:
            path = source_of(found["module"]) if found["module"] else script_of(found["script"])
            if path is None:
                yield f"{found[0].strip()}: no such file"
                continue
            known = set(options_of(path))
        yield from (f"{found[0].strip()[:60]}: no option {option}" for option in sorted(used - known))


@pytest.mark.parametrize("page", sorted(texts()))
def test_a_page_names_only_commands_and_options_that_are_there(page: str) -> None:
    assert list(findings(texts()[page])) == []


@pytest.mark.parametrize("page", sorted(texts()))
def test_an_option_inside_a_sentence_is_there(page: str) -> None:
    paths = [
        path.relative_to(ROOT).as_posix()
        for folder in ("examples", "docs", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ]
    known = set().union(*own().values(), *map(options_of, paths), OPTIONS_OF_OTHERS)
    found = [option for code in INLINE.findall(BLOCK.sub("", texts()[page])) for option in OPTION.findall(code)]
    named = {option for option in found if "_" not in option}  # accelerate's have underscores
    assert named - known == set()


def test_the_pages_name_many_commands() -> None:
    assert sum(len(list(commands(text))) for text in texts().values()) > 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```bash\ncramer-peft trian --data x\n```", "cramer-peft has no trian"),
        ("`cramer-peft train --dta x`", "cramer-peft train --dta x: no option --dta"),
        ("```bash\ncramer-peft train \\\n    --data x --nope\n```", "no option --nope"),
        ("```bash\npython -m benchmark --matrx full\n```", "no option --matrx"),
        ("```bash\npython -m benchmark.sped\n```", "no such file"),
        ("```bash\npython new_itms.py\n```", "no such file"),
    ],
)
def test_a_wrong_one_is_found(text: str, found: str) -> None:
    (finding,) = findings(text)
    assert found in finding
