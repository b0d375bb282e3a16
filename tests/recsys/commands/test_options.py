"""Tables given to the commands, from training to evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cramer_peft.recsys import Tables, TrainOptions, evaluate_recommender
from cramer_peft.recsys.commands.options import data_options

pytest.importorskip("accelerate")
Run = Callable[..., Any]
HASHING = {"masks": {"encoder": "hashing", "encoder_options": {"dim": 16}}}


@pytest.fixture(scope="module")
def frames(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The interactions and the items with the names of a shop."""
    visits, items = (pd.read_csv(folder / f"tales.{kind}", sep="\t") for kind in ("inter", "item"))
    visits = visits.set_axis(["customer", "sku", "ts"], axis=1)
    return visits, items.set_axis(["sku", "label", "kind"], axis=1)


def test_tables_from_training_to_evaluation(
    frames: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path, run: Run
) -> None:
    for frame, name in zip(frames, ("visits.csv", "goods.csv"), strict=True):
        frame.to_csv(tmp_path / name, index=False, sep=";")
    (tmp_path / "settings.json").write_text(json.dumps({**HASHING, "columns": {"attribute_separator": " "}}))
    output, files = tmp_path / "out", ("--interactions", tmp_path / "visits.csv", "--items", tmp_path / "goods.csv")
    named = ("--user", "customer", "--item", "sku", "--time", "ts", "--title", "label", "--attributes", "kind")
    given = ("--output", output, "--epochs", 1, "--steps", 2, "--config", tmp_path / "settings.json")
    ended = run("train", *files, *named, *given)
    assert ended.code == 0, ended.error
    text = " ".join(ended.out.split())
    for part in ("visits.csv, cut at ';', 265 rows: user 'customer'", "title 'label'", "attributes: column 'kind'"):
        assert part in text
    assert "goods.csv" in text.rpartition("cramer-peft evaluate")[2]
    written = (output / "training.json").read_text()
    assert str(tmp_path) not in written
    options = json.loads(written)["options"]
    assert options["data"] == "visits.csv and goods.csv"
    kept = {name: value for name, value in options["columns"].items() if value is not None}
    assert kept == {
        "user_column": "customer",
        "item_column": "sku",
        "time_column": "ts",
        "title_column": "label",
        "attribute_column": "kind",
        "attribute_separator": " ",
        "min_attribute_items": 5,
    }
    assert run("evaluate", "--adapter", output, *files).code == 0  # by the columns of training
    assert json.loads((output / "evaluation.json").read_text())["options"]["data"] == "visits.csv and goods.csv"
    assert "columns missing: who" in run("evaluate", "--adapter", output, *files, "--user", "who").message
    tracks = evaluate_recommender(output, Tables(*frames), say=lambda _: None)
    assert tracks["truthful"].users == 30


def test_options_that_do_not_go_together(tmp_path: Path, run: Run) -> None:
    for arguments, found in (
        ((), "found neither"),
        (("--user", "customer"), "found --user"),
        (("--data", "x", "--items", "y.csv"), "found --data and --items"),
        (("--request-column", "wish"), "found --request-column"),
    ):
        message = run("train", "--output", tmp_path / "out", *arguments).message
        assert f"{found}, expected --data" in " ".join(message.split())


def test_how_data_is_named_again() -> None:
    assert data_options("movielens-100k") == "--data movielens-100k"
    assert data_options(Tables(Path("a.csv"), Path("b.csv"))) == "--interactions a.csv --items b.csv"
    assert TrainOptions(Tables("a.csv"), "out").data.interactions == "a.csv"  # type: ignore[union-attr, arg-type]
