"""The figures of the pages are those of docs/figures/."""

import json
import re
from pathlib import Path

import pytest
from pages import DOCS, script, texts

check = script("check_figures")


def test_every_figure_agrees() -> None:
    assert [finding for text in texts().values() for finding in check.findings(text)] == []


def test_every_file_of_figures_is_shown_and_says_where_it_is_from() -> None:
    shown = set(re.findall(r"<!-- (?:figures )?([\w.-]+): ", "".join(texts().values())))
    for path in (DOCS / "figures").glob("*.json"):
        assert path.stem in shown
        assert re.fullmatch(r"[0-9a-f]{7,40}", check.load(path.stem)["commit"])
        assert check.load(path.stem)["command"] in re.sub(r" \\\n\s*", " ", "".join(texts().values()))


def test_tables_of_a_data_set_are_made_from_its_file() -> None:
    for page in DOCS.glob("results-*.md"):
        rest = check.TABLE.sub("", page.read_text(encoding="utf-8"))
        assert re.findall(r"\| \.?\d+\.\d+ [±\[]", rest) == []


def test_a_wrong_figure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"ours": {"NDCG@10": [0.2512, 0.233, 0.27], "parameters": 130003}, "frozen": {"NDCG@10": 0.103}}
    document = {"command": "c", "folder": "f", "commit": "abcdef0", "rows": rows}
    (tmp_path / "a.json").write_text(json.dumps(document))
    monkeypatch.setattr(check, "FIGURES", tmp_path)
    page = check.written("<!-- figures a: NDCG@10 | parameters -->\n<!-- end of figures -->")
    assert "| ours | .251 ± .019 | 130,003 |" in page
    assert "| frozen | .103 |  |" in page
    assert list(check.findings(page)) == []
    assert list(check.findings(page.replace(".251", ".261"))) != []
    assert (
        list(check.findings("it is .25<!-- a: ours | NDCG@10 -->, 130,003 <!-- a: ours | parameters --> of them")) == []
    )
    assert list(check.findings(".251 ± .019<!-- a: ours | NDCG@10 -->")) == []
    for wrong in (
        ".26<!-- a: ours | NDCG@10 -->",
        ".251 ± .02<!-- a: ours | NDCG@10 -->",
        "1<!-- a: none | x -->",
        "1<!-- b: x | y -->",
    ):
        assert len(list(check.findings(wrong))) == (0 if "± .02<" in wrong else 1)


def test_figures_are_taken_from_what_the_benchmark_wrote() -> None:
    interval = {"value": 0.25123, "low": 0.2, "high": 0.3}
    group = {"data": "d", "protocol": "p", "backbone": "b", "method": "ours", "variant": None, "seeds": [0, 1]}
    group |= {"trainable": 7, "tracks": {"truthful": {"ndcg": interval, "users": 3}}}
    found = check.take({"command": "python -m benchmark", "groups": [group]}, "abcdef0")
    assert found["rows"] == {"ours": {"NDCG@10": [0.2512, 0.2, 0.3], "parameters": 7, "seeds": 2}}
    with pytest.raises(ValueError, match="take them apart"):
        check.take({"command": "c", "groups": [group, {**group, "data": "e"}]}, "abcdef0")
    row = {"name": "gates ready", "ratio": 1.02, "low": 1.0, "high": 1.1, "peak_ratio": 1.04}
    timed = check.take({"results": [{"model": "sasrec-64", "batch": 256, "rows": [row]}]}, "abcdef0", "python -m x")
    assert timed["rows"] == {"sasrec-64, 256 rows, gates ready": {"ratio": [1.02, 1.0, 1.1], "peak": 1.04}}
