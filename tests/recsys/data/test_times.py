"""Timestamps keep every difference, are dates too, and name what they cannot read."""

import random
from pathlib import Path

import pytest

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.own_data import load_own_data
from cramer_peft.recsys.data.splits import temporal_split
from cramer_peft.recsys.data.table import Table
from cramer_peft.recsys.data.times import parse_times

pytest.importorskip("pandas")
ITEMS = "item_id:token\ttitle:token_seq\tgenres:token_seq\n" + "".join(f"{n}\tT{n}\tnew old\n" for n in range(30))


def table(*cells: str) -> Table:
    return Table("x.inter", ("timestamp",), {"timestamp": cells}.__getitem__, range(2, len(cells) + 2))


def parsed(*cells: str) -> list[float]:
    found: list[float] = parse_times(table(*cells), "timestamp").tolist()
    return found


def write(folder: Path, lines: list[tuple[str, int, str]], kind: str = "float") -> Path:
    (folder / "x.item").write_text(ITEMS)
    header = f"user_id:token\titem_id:token\ttimestamp:{kind}\n"
    (folder / "x.inter").write_text(header + "".join("\t".join(map(str, line)) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "cells",
    [
        ("1700000000000000001", "1700000000000000002", "1700000000000000003"),  # equal in float64
        ("1700000000000000001", "1700000000000000002.0", "1700000000000000003"),
        ("1700000000.000000001", "1700000000.000000002", "1700000000.1"),
        ("-9223372036854775808", "-1", "9223372036854775807"),
        ("1.5", "2", "1e300"),
        ("0", "1e-9", "1"),
        ("2023-12-31", "2024-01-01", "2024-02-29"),
        ("2024-01-01T00:00:00.000000001Z", "2024-01-01T00:00:00.000000002Z", "2024-01-01T00:00:00.1Z"),
        ("2024-01-01 12:00+05:00", "2024-01-01 12:00Z", "2024-01-01 12:00-0330"),
        ("1969-12-31 23:59:58.75", "1969-12-31 23:59:59.25", "1970-01-01"),
        ("0001-01-01", "1600-05-06 07:08", "9999-12-31 23:59:59"),
    ],
)
def test_different_times_stay_different_and_in_order(cells: tuple[str, ...]) -> None:
    numbers = parsed(*cells)
    assert sorted(set(numbers)) == numbers
    assert parsed(*reversed(cells)) == numbers[::-1]


def test_equal_times_stay_equal() -> None:
    assert parsed("7", "7.0", " 7 ") == [7.0] * 3
    assert parsed("2024-01-01T10:00Z", "2024-01-01 12:00:00.0+02:00", "2024-01-01T04:30-05:30") == [1704103200] * 3
    assert (
        parsed("1700000000000000001", "1700000000000000003", "1700000000000000001.0")[::2] == [1700000000000000001] * 2
    )


def test_whole_numbers_stay_whole() -> None:
    for cells, kind in ((("3", "1"), "int64"), (("3", "1.5"), "float64"), (("2024-01-01",), "int64")):
        assert parse_times(table(*cells), "timestamp").dtype == kind


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("1", "yesterday"), r"x\.inter, line 3: timestamp is yesterday \(1 such line\), expected a finite number"),
        (("1", "", "nan"), r"line 3: timestamp is blank \(2 such lines\)"),
        (("1", "-inf"), "line 3: timestamp is -inf"),
        (("1", "1e999"), "line 3: timestamp is 1e999"),
        (("2024-01-01", "2023-02-29"), "line 3: timestamp is 2023-02-29"),
        (("2024-01-01", "1704067200"), "line 3: timestamp is 1704067200 .*in all lines a date"),
        (
            ("2024-01-01", "01/02/2024"),
            "line 3: column 'timestamp' holds '01/02/2024': the day can be",
        ),
        (("2024-01-01.5", "2024-01-01"), r"line 2: timestamp is 2024-01-01\.5"),
        (("2024-01-01T10:00Z", "2024-01-01T10:00"), "line 3: timestamp is 2024-01-01T10:00, a date without a zone"),
        (("10000000000000000000001", "10000000000000000000002"), "different values that are equal as 64-bit numbers"),
        (("1e-400", "0"), "different values that are equal"),
    ],
)
def test_what_is_no_time_is_named(cells: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parsed(*cells)


def test_histories_follow_nanoseconds_and_not_the_lines(tmp_path: Path) -> None:
    rng, start, lines, order = random.Random(1), 1_699_999_999_123_456_789, [], {}
    for user in ("u", "v"):
        order[user] = rng.sample(range(30), 9)
        lines += [(user, item, str(start + 2 * place)) for place, item in enumerate(order[user])]
    rng.shuffle(lines)
    _, interactions = load_dataset(write(tmp_path, lines))
    assert {
        user: items.tolist() for user, items in zip(interactions.user_ids, interactions.sequences, strict=True)
    } == order
    assert interactions.tied_users == 0
    assert interactions.times[0].tolist() == [start + 2 * place for place in range(9)]


def test_a_timeline_of_nanoseconds_is_cut_between_neighbours(tmp_path: Path) -> None:
    start = 1_700_000_000_000_000_000
    lines = [(user, item, str(start + 3 * item + number)) for number, user in enumerate("uvw") for item in range(10)]
    _, interactions = load_dataset(write(tmp_path, lines), min_interactions=1)
    split = temporal_split(interactions, (0.6, 0.8))
    assert split.cuts == (start + 18, start + 24)
    assert [len(items) for items in split.train] == [6, 6, 6]
    assert (split.validation.tied_targets, split.test.tied_targets) == (0, 0)


@pytest.mark.parametrize("kind", ["float", "token", "str"])
def test_dates_in_fields_of_each_type(kind: str, tmp_path: Path) -> None:
    lines = [("u", 4, "2024-03-01"), ("u", 2, "2023-12-24 18:30"), ("u", 9, "2024-02-28T23:59:59.5")]
    _, interactions = load_dataset(write(tmp_path, lines, kind))
    assert interactions.sequences[0].tolist() == [2, 9, 4]


def test_what_is_read_says_whose_order_the_lines_decide(tmp_path: Path) -> None:
    lines = [("tied", item, str(item // 2)) for item in range(5)] + [("clear", item, str(item)) for item in range(5)]
    data = load_own_data(write(tmp_path, lines))
    assert data.interactions.tied_users == 1
    assert "1 user with items of equal time, which the order of the file's lines sorts" in data.describe()
    clear = load_own_data(write(tmp_path, lines[5:]))
    assert "equal time" not in clear.describe()


def test_stated_requests_belong_to_the_first_time_to_the_nanosecond(tmp_path: Path) -> None:
    start = 1_700_000_000_000_000_000
    write(tmp_path, [])
    cells = [(9, 20, "second"), (9, 5, "first"), (1, 1, ""), (2, 2, "")]
    lines = "".join(f"u\t{item}\t{start + after}\t{text}\n" for item, after, text in cells)
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\trequest:token_seq\n" + lines)
    assert load_own_data(tmp_path).own_requests("test") == ("first",)
