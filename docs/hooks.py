"""Hooks of mkdocs: notebooks as pages, formulas as MathML, the configuration's fields, references as plain code."""

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from peft import PeftConfig

from cramer_peft import RequestMaskConfig

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod):(<code[^>]*>)~?")
_FIELDS = "<!-- fields of RequestMaskConfig -->"
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
_NOTEBOOK = re.compile(r"\]\(((?:\w+/|\.\./)*[\w-]+)\.ipynb(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Add a page for each notebook, beside the notebook itself."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            text = notebook_page(
                json.loads(
                    Path(str(file.abs_src_path)).read_text(encoding="utf-8")
                ),
                file.name,
            )
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put in the table of the configuration's fields, and let links to notebooks lead to their pages."""
    markdown = (
        markdown.replace(_FIELDS, _table()) if _FIELDS in markdown else markdown
    )
    return _NOTEBOOK.sub(r"](\1.md\2)", markdown)


def on_page_content(
    html: str, **_: object
) -> str:  # mkdocs passes it by this name
    """Turn formulas into MathML, and cross-references in docstrings, such as ``:class:`Name```, into plain code."""
    return _FORMULA.sub(_mathml, _ROLE.sub(r"\1", html))


def notebook_page(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown: its texts, its code, and the output that is stored with it."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = "".join(
            "".join(output.get("text", ())) for output in cell["outputs"]
        )
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
    parts.append(
        f'<a href="../{name}.ipynb" download>Download this page as a notebook</a>'
    )
    return "\n\n".join(parts) + "\n"


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return f'<{found[1]} class="formula">{convert(html.unescape(found[2]).strip(), display=display)}</{found[1]}>'


def _table() -> str:
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {_escaped(field.metadata['help'])} |"
        for field in dataclasses.fields(RequestMaskConfig)
        if field.name not in inherited
    ]
    return "\n".join(
        ["| Field | Default | Meaning |", "| --- | --- | --- |", *rows]
    )


def _escaped(text: str) -> str:
    return re.sub(r"([_*|<>])", r"\\\1", text)
