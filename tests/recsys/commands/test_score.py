from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cramer_peft.recsys.recommender import RequestRecommender

ROWS = {
    "customer": ["a", "b", "c"],
    "bought": [["0", "99", "4", "8"], ["99"], ["5"]],
    "said": ["less [/bold]", "more war", None],
}
COLUMNS = ("--user", "customer", "--history", "bought", "--request", "said")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pq.write_table(pa.table(ROWS), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_score(made: Path, run: Callable[..., Any], rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("score", "--adapter", made, "--rows", rows, "--output", output, "--strength", 6, "--k", 5, *COLUMNS)
    ended = run(*command)
    assert ended.code == 0, ended
    assert "3 rows in 1 part, 0 there already" in ended.out
    said = " ".join(ended.out.split())
    assert f"Lists: {output}/lists; 1 row without a list, and why: {output}/bad; 1 unknown item left out" in said
    loaded = RequestRecommender.load(made)
    expected = [
        [loaded.catalogue.item_ids[item] for item in loaded.recommend(history, text, strength=6.0, k=5).items]
        for history, text in (([0, 4, 8], "less [/bold]"), ([5], None))
    ]
    lists = pq.read_table(output / "lists").to_pylist()
    assert [[row["item"] for row in lists if row["user"] == user] for user in "ac"] == expected
    assert "99" in pq.read_table(output / "bad")["reason"][0].as_py()
    assert "0 rows in" in run(*command).out  # all is there
    refused = run(*command, "--refuse-unknown", "--output", tmp_path / "refused")
    assert "2 rows without a list" in " ".join(refused.out.split())
    assert "left out" not in refused.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--history", "visits"), "found the columns customer, bought, said, expected also visits"),
        (("--request", "customer"), "expected a column for each of user, history and request"),
        (("--rows", "nowhere.parquet"), "nowhere.parquet"),
        (("--adapter", "nowhere"), "not a recommender folder"),
    ],
)
def test_what_cannot_be_scored(
    made: Path, run: Callable[..., Any], rows: Path, tmp_path: Path, changes: tuple[str, str], message: str
) -> None:
    command = ["score", "--adapter", made, "--rows", rows, "--output", tmp_path / "out", *COLUMNS]
    assert message in run(*command, *changes).message
    assert not (tmp_path / "out").exists()
