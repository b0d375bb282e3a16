"""Rows to score in Parquet files, some of them bad, and lists read back."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TEXTS = ["more horror", "no comedy", None, "", "something old", "drama please"]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., pa.Table]:
    """Makes rows for the catalogue of 40 items; every ``bad`` row has an unknown item."""

    def make(count: int, seed: int = 0, bad: int = 0) -> pa.Table:
        rng = random.Random(seed)
        histories = [[f"i{item}" for item in rng.sample(range(40), rng.randint(1, 12))] for _ in range(count)]
        for row in range(bad - 1, count, bad) if bad else ():
            histories[row][-1] = "gone"
        users = [f"u{seed}-{row}" for row in range(count)]
        return pa.table({"user": users, "history": histories, "request": [rng.choice(TEXTS) for _ in range(count)]})

    return make


@pytest.fixture
def rows(make_rows: Callable[..., pa.Table], tmp_path: Path) -> Path:
    """Two files of 60 and 35 rows, in row groups of 25; every tenth row is bad."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count in (("a", 60), ("b", 35)):
        pq.write_table(make_rows(count, seed=count, bad=10), folder / f"{name}.parquet", row_group_size=25)
    return folder


@pytest.fixture(scope="session")
def read() -> Callable[[Path], dict[str, list[Any]]]:
    """Reads lists back: user → (rank, item, score, heard), and checks that nobody is there twice."""

    def read_all(output: Path) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for path in sorted((output / "lists").glob("*.parquet")):
            own: dict[str, list[Any]] = {}
            for row in pq.read_table(path).to_pylist():
                own.setdefault(row["user"], []).append((row["rank"], row["item"], row["score"], row["heard"]))
            assert not own.keys() & found.keys()
            found.update(own)
        for own_list in found.values():
            assert [rank for rank, *_ in own_list] == list(range(1, len(own_list) + 1))
        return found

    return read_all
