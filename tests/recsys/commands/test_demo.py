import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cramer_peft.errors import DownloadError, MissingExtraError
from cramer_peft.recsys.backbones import SASRec, save_backbone


@pytest.fixture
def demo(run: Callable[..., Any], shop: Path, tmp_path: Path) -> Callable[..., Any]:
    pytest.importorskip("wordllama")

    def run_demo(*arguments: object) -> Any:
        given = ("--output", tmp_path / "out", "--steps", 2, "--epochs", 1, *arguments)
        return run("demo", *given, *(() if "--data" in arguments else ("--data", shop)))

    return run_demo


def test_demo_then_recommend(demo: Callable[..., Any], run: Callable[..., Any], tmp_path: Path) -> None:
    ended = demo("--seed", 3, "--full")
    assert ended.code == 0, ended
    output = tmp_path / "out"
    assert sorted(entry.name for entry in output.iterdir()) == [
        "adapter",
        "attribute_shares.png",
        "backbone",
        "before_after.png",
        "catalogue.json",
        "results.json",
    ]
    results = json.loads((output / "results.json").read_text())
    assert results["options"]["seed"] == 3
    assert results["options"]["generator"]["steps"] == results["options"]["paper_generator"]["steps"] == 2
    assert results["options"]["backbone_options"]["epochs"] == 1
    for part in (
        "frozen",
        "paper's form",
        "ours",
        "text fusion",
        "NDCG",
        "(none)",
        "(after unloading)",
        "[/bold]",
        "→ wanted",
    ):
        assert part in ended.out
    assert "bit for bit" in ended.out
    assert "DIFFER" not in ended.out
    assert str(output) in ended.out.replace("\n", "")
    title = results["examples"][0]["titles"][0].rpartition(" (")[0]
    again = run("recommend", "--adapter", output, "--history", title, "--request", "more war")
    assert again.code == 0, again


def test_the_quick_demo(demo: Callable[..., Any], tmp_path: Path) -> None:
    ended = demo()
    assert ended.code == 0, ended
    for part in ("frozen", "ours", "quick demo: 1 epochs, 2 steps", "(before: no request)", "(after: masks taken off)"):
        assert part in " ".join(ended.out.split())
    for part in ("paper's form", "text fusion", "DIFFER"):
        assert part not in ended.out
    assert "equal those before, bit for bit" in " ".join(ended.out.split())
    assert "epoch 1 of 1: ndcg@10" in ended.error
    for part in ("\r", "{", "Loading", "%|"):
        assert part not in ended.out + ended.error
    assert not (tmp_path / "out" / "attribute_shares.png").exists()
    assert (tmp_path / "out" / "before_after.png").stat().st_size > 10_000


def test_columns_of_the_users_choice(demo: Callable[..., Any]) -> None:
    message = demo("--title-column", "titel").message
    assert "columns missing: titel; columns there: 'item_id', 'name', 'genres'" in message
    assert "title_column" in message
    assert "columns missing: kind" in demo("--attribute-column", "kind").message


def test_missing_columns(demo: Callable[..., Any], tmp_path: Path, shop: Path) -> None:
    data = Path(shutil.copytree(shop, tmp_path / "data"))
    inter = (data / "x.inter").read_text()
    (data / "x.inter").write_text(inter.replace("timestamp:float", "when:float"))
    assert "columns missing: timestamp; columns there: 'user_id', 'item_id', 'when'" in demo("--data", data).message
    (data / "x.inter").write_text(inter)
    (data / "x.item").write_text((data / "x.item").read_text().replace("item_id:token", "thing:token"))
    assert "columns missing: item_id" in demo("--data", data).message


def test_bad_data(demo: Callable[..., Any], tmp_path: Path, shop: Path) -> None:
    data = Path(shutil.copytree(shop, tmp_path / "data"))
    inter, item = (data / "x.inter").read_text(), (data / "x.item").read_text()
    assert "neither a data set's name" in demo("--data", tmp_path / "absent").message
    (data / "x.inter").write_text(inter + "u0\t999\t7\n" * 20)
    assert "'999', in 20 of 92 lines" in demo("--data", data).message
    (data / "x.inter").write_text("".join(inter.splitlines(keepends=True)[:2]))
    assert "none of 1 users has 3 or more" in demo("--data", data).message
    (data / "x.inter").write_text(inter)
    (data / "x.item").write_text(item + "29\tOther\twar\n")
    assert "more than once: '29'" in demo("--data", data).message
    (data / "x.item").unlink()
    assert "expected exactly one *.item file" in demo("--data", data).message


def test_a_bad_backbone(demo: Callable[..., Any], tmp_path: Path, shop: Path) -> None:
    for given in (tmp_path / "absent", shop):
        assert "holds no readable backbone" in demo("--backbone", given).message
    save_backbone(SASRec(SASRec.configure(7, hidden_size=16)), tmp_path)
    assert "the backbone knows 7 items" in demo("--backbone", tmp_path / "backbone").message


def test_an_output_that_cannot_be_written(run: Callable[..., Any], shop: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = run("demo", "--data", shop, "--output", tmp_path / "file" / "out").message
    assert "file" in message


def test_a_download_that_fails(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(name: str) -> Path:
        raise DownloadError("the download was cut off")

    monkeypatch.setattr("cramer_peft.recsys.data.datasets.fetch_dataset", cut_off)
    for named in ((), ("--data", "movielens-1m"), ("--data", "movielens-100k")):
        assert "the download was cut off" in run("demo", "--output", tmp_path / "out", *named).message


def test_a_missing_extra_is_named(demo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtraError("pandas is missing: pip install 'cramer-peft[demo]'.")

    monkeypatch.setattr("cramer_peft.recsys.data.table.require", missing)
    assert "pip install 'cramer-peft[demo]'" in demo().message
