import io
import struct
from pathlib import Path

import pytest
import torch

from cramer_peft.recsys.commands.display import (
    answer_table,
    changes,
    everyday_table,
    examples_table,
    metrics_table,
    plot_followed,
    plot_shares,
)
from cramer_peft.recsys.commands.followed import Followed
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.recommender import Answer

console_module = pytest.importorskip("rich.console")

ROW = {"ndcg": 0.1234, "hr": 0.5, "mrr": 0.25, "satisfaction": 0.6, "violation": 0.05, "overlap_empty": 1.0}


def rendered(table: object, width: int = 200) -> str:
    console = console_module.Console(width=width, file=io.StringIO())
    console.print(table)
    text: str = console.file.getvalue()
    return text


@pytest.fixture
def tales() -> Catalogue:
    """Titles that a markup language could stumble over."""
    flags = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
    return Catalogue(tuple("abcd"), ("Plain", "[REC]", "[/bold] x", "[red]dot"), ("[new] wave", "drama"), flags)


def test_metrics_table_fits_a_narrow_terminal() -> None:
    rows = {"frozen": {**ROW, "seconds": 12.4, "ndcg:for": 0.9}, "paper's form": {**ROW, "seconds": 1234.0}}
    text = rendered(metrics_table(rows, 1234, "quick demo: so"), width=80)
    assert "1,234 test users" in text
    assert "quick demo: so" in text
    for title in ("NDCG", "HR", "MRR", "@10", "satisfaction", "violation", "overlap", "seconds"):
        assert title in text
    for name, seconds in (("frozen", "12"), ("paper's form", "1234")):
        line = next(line for line in text.splitlines() if name in line)
        assert line.split()[-7:] == ["0.123", "0.500", "0.250", "0.600", "0.050", "1.000", seconds]
    assert "…" not in text


def test_examples_table() -> None:
    examples = [(None, ["A"]), ("more [horror]", ["[REC] (x)", "C"]), (None, ["A"])]
    text = rendered(examples_table(examples))
    assert text.count("(none)") == text.count("(after unloading)") == 1
    assert "more [horror]" in text
    assert "[REC] (x)" in text


def test_everyday_table() -> None:
    asked = [(None, None, ["A"]), ("like [REC]", "wanted: like [REC]", ["[/bold] x", "A"]), (None, None, ["A"])]
    text = rendered(everyday_table(asked))
    for part in (
        "(before: no request)",
        "like [REC]",
        "→ wanted: like [REC]",
        "+ [/bold] x",
        "(after: masks taken off)",
    ):
        assert part in text
    assert text.count("  A") == 3
    assert "None" not in text


def test_answer_table(tales: Catalogue) -> None:
    answer = Answer([1, 2, 3], [0, 2, 3], {})
    text = rendered(answer_table(answer, tales, "less [/drama]"))
    assert "Recommended under: less [/drama]" in text
    lines = {title: next(line for line in text.splitlines() if title in line) for title in tales.titles[1:]}
    assert "new" in lines["[REC]"].replace("[new]", "")
    assert "new" not in lines["[/bold] x"].replace("[new] wave", "")
    assert "[new] wave, drama" in lines["[/bold] x"]
    assert "Recommended under" not in rendered(answer_table(answer, tales, None))


def test_changes(tales: Catalogue) -> None:
    answer = Answer([1, 2], [0, 3], {"drama": (0.25, 1.0), "[new] wave": (0.5, 0.5), "war": (0.3, 0.1)})
    assert changes(answer, tales) == ["went: Plain; [red]dot", "shares: drama 25% → 100%, war 30% → 10%"]
    many = Answer([1], [1], {f"a{number}": (0.5, 0.5 + number / 20) for number in range(7)})
    assert changes(many, tales) == ["shares: a6 50% → 80%, a5 50% → 75%, a4 50% → 70%, a3 50% → 65%, and 2 more"]
    assert changes(Answer([1], [1], {"drama": (1.0, 1.0)}), tales) == ["the request changed nothing in this list"]


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shares = {f"genre {index}": (index / 60, index / 40, index / 90) for index in range(30)}
    path = tmp_path / "shares.png"
    plot_shares(shares, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.rstrip().endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert 800 <= width <= 3000
    assert 400 <= height <= 2000
    assert 10_000 < len(data) < 500_000


def test_picture_of_what_follows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number in (1, 6):
        path = tmp_path / f"{number}.png"
        plot_followed([Followed("something with $\\war$", 0.1, 0.9)] * number, 200, "quick", path)
        assert 10_000 < path.stat().st_size < 500_000


def test_picture_of_one_attribute(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_shares({"only": (0.1, 0.2, 0.0)}, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
