"""Parquet in, Parquet out: whole parts or none, in one process and by Ray's actors, one of which is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys import ListOptions, ListScorer, score_dataset
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.scoring import dataset as module
from cramer_peft.recsys.scoring.dataset import PartScorer
from cramer_peft.recsys.scoring.parts import Output, Part, open_rows, plan_parts, read_part

Read = Callable[[Path], dict[str, list[Any]]]
OPTIONS = ListOptions(k=5, strength=4.0, batch_size=8, refuse_unknown=True)


def quiet(_: str) -> None:
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_row_has_its_list_or_a_reason(bundle: Path, rows: Path, tmp_path: Path, read: Read) -> None:
    lines: list[str] = []
    done = score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=20, say=lines.append)
    assert (done.parts, done.earlier, done.rows, done.bad) == (5, 0, 95, 9)
    assert lines[0] == "95 rows in 5 parts, 0 there already"
    assert "part 5 of 5: 95 rows, 9 bad" in lines[-1]
    table = pa.concat_tables([pq.read_table(rows / "a.parquet"), pq.read_table(rows / "b.parquet")])
    expected = ListScorer(bundle, OPTIONS)(table)
    found = read(tmp_path / "out")
    assert list(found) == list(dict.fromkeys(expected.lists["user"].to_pylist()))
    items = [item for own in found.values() for _, item, *_ in own]
    assert items == expected.lists["item"].to_pylist()
    bad = pq.read_table(tmp_path / "out" / "bad")
    assert sorted(bad["user"].to_pylist()) == sorted(expected.bad["user"].to_pylist())
    assert all("'gone'" in reason for reason in bad["reason"].to_pylist())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_plan.json", "bad", "lists"]


def test_unknown_items_of_all_parts_are_counted(bundle: Path, rows: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, refuse_unknown=False)
    done = score_dataset(bundle, rows, tmp_path / "out", options, part_rows=20, say=quiet)
    assert (done.rows, done.bad, done.unknown) == (95, 0, 9)
    with pytest.raises(DataError, match="not the same refuse_unknown"):
        score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=20, say=quiet)


def test_what_is_written_is_not_scored_again(
    bundle: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_dataset(bundle, rows, tmp_path / "whole", OPTIONS, part_rows=20, say=quiet)
    write, count = Output.write_part, 0

    def failing(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError("the disk is full")
        write(*arguments)

    monkeypatch.setattr(Output, "write_part", failing)
    with pytest.raises(OSError, match="full"):
        score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=20, say=quiet)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "lists").iterdir()}
    assert len(times) == 2
    again = score_dataset(bundle, str(rows), str(tmp_path / "out"), OPTIONS, part_rows=20, say=quiet)
    assert (again.parts, again.earlier, again.rows) == (3, 2, 55)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    nothing = score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=20, say=quiet)
    assert (nothing.parts, nothing.earlier, nothing.rows) == (0, 5, 0)


def test_parts_of_another_scoring_are_refused(bundle: Path, rows: Path, tmp_path: Path) -> None:
    score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=50, say=quiet)
    nobody = replace(OPTIONS, candidates=())  # not the same as no candidates named
    for options, part_rows, message in (
        (replace(OPTIONS, k=6), 50, "k"),
        (OPTIONS, 40, "parts"),
        (nobody, 50, "candidates"),
    ):
        with pytest.raises(DataError, match=f"parts of another scoring: not the same .*({message})"):
            score_dataset(bundle, rows, tmp_path / "out", options, part_rows=part_rows, say=quiet)
    (bundle / "evaluation.json").write_text("{}")  # an evaluation in between changes no list
    assert score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=50, say=quiet).parts == 0
    loaded = RequestRecommender.load(bundle)
    with torch.no_grad():
        loaded.masks.generator.head.bias.add_(1)
    loaded.save(bundle)
    with pytest.raises(DataError, match="another scoring: not the same recommender\\."):
        score_dataset(bundle, rows, tmp_path / "out", OPTIONS, part_rows=50, say=quiet)
    with pytest.raises(DataError, match="expected an empty folder"):
        score_dataset(bundle, rows, rows, OPTIONS, say=quiet)


def test_addresses(bundle: Path, rows: Path, tmp_path: Path, read: Read) -> None:
    score_dataset(bundle, rows.as_uri(), (tmp_path / "out").as_uri(), OPTIONS, say=quiet)
    score_dataset(bundle, rows / "a.parquet", tmp_path / "one", OPTIONS, say=quiet)
    found, one = read(tmp_path / "out"), read(tmp_path / "one")
    assert len(found) == 86
    assert len(one) == 54
    assert {user: found[user] for user in one} == one


def test_what_cannot_be_scored(bundle: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(DataError, match=r"nowhere.*Expected a Parquet file"):
        score_dataset(bundle, tmp_path / "nowhere", output, say=quiet)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "_x.parquet").touch()
    with pytest.raises(DataError, match="found no file"):
        score_dataset(bundle, tmp_path / "empty", output, say=quiet)
    (tmp_path / "empty" / "x.parquet").write_text("no")
    with pytest.raises(DataError, match=r"x\.parquet.*Expected a Parquet file"):
        score_dataset(bundle, tmp_path / "empty", output, say=quiet)
    with pytest.raises(DataError, match="what://x"):
        score_dataset(bundle, "what://x", output, say=quiet)
    with pytest.raises(DataError, match="not a recommender folder"):
        score_dataset(rows, rows, output, say=quiet)
    for numbers in ({"part_rows": 0}, {"actors": -1}, {"gpus": -1.0}):
        with pytest.raises(ConfigError):
            score_dataset(bundle, rows, output, say=quiet, **numbers)  # type: ignore[arg-type]
    assert not output.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(part_rows=st.integers(1, 70))
def test_parts_are_the_rows_in_order(rows: Path, part_rows: int) -> None:
    parts = plan_parts(str(rows), OPTIONS, part_rows)
    files = open_rows(str(rows)).filesystem
    tables = [read_part(files, part, OPTIONS) for part in parts]
    assert all(0 < len(table) <= part_rows for table in tables)
    assert [len(table) for table in tables] == [part.rows for part in parts]
    assert len({part.name for part in parts}) == len(parts)
    assert pa.concat_tables(tables) == pa.concat_tables([pq.read_table(rows / f"{name}.parquet") for name in "ab"])


def _first_time(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class DyingScorer(PartScorer):
    """Scores parts, but its process is killed in the middle of writing one, and just after it has written another."""

    def score(self, part: Part) -> dict[str, int]:
        output = Path(self._output.path)
        if part.name == "part-000002.parquet" and _first_time(output.parent / "killed-while-writing"):
            self._output.write(f"bad/{part.name}", b"half a file")
            (output / "_temporary" / "left").write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        done = super().score(part)
        if part.name == "part-000004.parquet" and _first_time(output.parent / "killed-after-writing"):
            os.kill(os.getpid(), signal.SIGKILL)
        return done


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    ray.init(num_cpus=3, logging_level="error", include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_actors_that_are_killed_lose_and_double_nothing(
    cluster: None,
    bundle: Path,
    make_rows: Callable[..., pa.Table],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Read,
) -> None:
    pq.write_table(make_rows(800, bad=50), tmp_path / "rows.parquet")
    score_dataset(bundle, tmp_path / "rows.parquet", tmp_path / "here", OPTIONS, part_rows=100, say=quiet)
    monkeypatch.setattr(module, "PartScorer", DyingScorer)
    lines: list[str] = []
    done = score_dataset(
        bundle, tmp_path / "rows.parquet", tmp_path / "ray", OPTIONS, part_rows=100, actors=2, say=lines.append
    )
    assert (tmp_path / "killed-while-writing").exists()
    assert (tmp_path / "killed-after-writing").exists()
    assert (done.parts, done.rows, done.bad) == (8, 800, 16)
    assert "part 8 of 8: 800 rows, 16 bad" in lines[-1]
    assert len(read(tmp_path / "ray")) == 784
    assert files(tmp_path / "ray") == files(tmp_path / "here")  # bit for bit the lists of one process
