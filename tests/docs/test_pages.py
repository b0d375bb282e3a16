"""How the pages are written and built."""

import re

import pytest
from pages import DOCS, ROOT, texts

OWN_PAGES = sorted(page for page in texts() if page.startswith("docs/"))


@pytest.mark.parametrize("page", OWN_PAGES)
def test_code_fits_80_characters(page: str) -> None:
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", texts()[page], re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 80] == []


def test_no_page_needs_the_internet() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"https?://\S+\.(?:js|css)", settings) == []
    for page, text in texts().items():
        assert re.findall(r"!\[[^\]]*\]\(https?:|<(?:script|img|link)[^>]+https?:", text) == [], page


def test_the_five_groups() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r"^  - ([^:]+):$", settings.split("nav:")[1].split("exclude_docs:")[0], re.MULTILINE) == [
        "Start",
        "Tutorials",
        "How to",
        "Explanation",
        "Reference",
    ]


@pytest.mark.parametrize("word", ["csv", "pandas", "Ray", "LoRA"])
def test_a_search_finds(word: str) -> None:
    assert [page for page in OWN_PAGES if re.search(rf"\b{word}\b", texts()[page], re.IGNORECASE)]


def test_formulas_become_mathml_and_notebooks_pages() -> None:
    for package in ("mkdocs", "latex2mathml"):  # the extra docs
        pytest.importorskip(package)
    from pages import script

    hooks = script("hooks")
    html = hooks.on_page_content(r'<p><span class="arithmatex">\(a &lt; b_1\)</span></p>')
    assert "<math" in html
    assert "<msub>" in html
    assert "arithmatex" not in html
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"text": ["1\n"]}]},
    ]
    page = hooks.notebook_page({"cells": cells}, "a")
    assert page.startswith("# A title\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```")
    assert hooks.on_page_markdown("see [it](tutorials/own-model.ipynb#x)") == "see [it](tutorials/own-model.md#x)"
    assert (DOCS / "tutorials" / "own-model.ipynb").is_file()
