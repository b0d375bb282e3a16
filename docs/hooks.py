"""Hooks of mkdocs: the table of the configuration's fields, and cross-references as plain code."""

import dataclasses
import re

from peft import PeftConfig

from cramer_peft import RequestMaskConfig

_ROLE = re.compile(r":(?:class|meth|func|data|attr|mod):(<code[^>]*>)~?")
_FIELDS = "<!-- fields of RequestMaskConfig -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put a table of the configuration's fields, from their help texts, in its place."""
    return markdown.replace(_FIELDS, _table()) if _FIELDS in markdown else markdown


def on_page_content(html: str, **_: object) -> str:
    """Show cross-references in docstrings, such as ``:class:`Name```, as plain code."""
    return _ROLE.sub(r"\1", html)


def _table() -> str:
    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    rows = [
        f"| `{field.name}` | `{field.default!r}` | {_escaped(field.metadata['help'])} |"
        for field in dataclasses.fields(RequestMaskConfig)
        if field.name not in inherited
    ]
    return "\n".join(["| Field | Default | Meaning |", "| --- | --- | --- |", *rows])


def _escaped(text: str) -> str:
    return re.sub(r"([_*|<>])", r"\\\1", text)
