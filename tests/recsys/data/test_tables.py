"""The same data as frames, files and data sets of Hugging Face is read the same."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from cramer_peft.errors import DataError
from cramer_peft.recsys import Tables, load_dataset
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.own_data import OwnData, load_own_data
from cramer_peft.recsys.data.tables import cell_text

KINDS = ("red", "green", "blue")
START = pd.Timestamp("2024-01-01")


def visits(users: int = 12) -> pd.DataFrame:
    """Six visits of each user, with whole numbers as ids."""
    pairs = [(user, visit) for user in range(users) for visit in range(6)]
    return pd.DataFrame(
        {
            "customer": [100 + user for user, _ in pairs],
            "sku": [(user * 3 + visit) % 30 for user, visit in pairs],
            "ts": [START + pd.Timedelta(hours=user * 10 + visit) for user, visit in pairs],
            "note": ["—"] * len(pairs),
        }
    )


def goods() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sku": range(30),
            "name": [f"Lamp {n}" if n else None for n in range(30)],
            "category": [[KINDS[n % 3], "lamp"] if n % 2 else [KINDS[n % 3]] for n in range(30)],
            "price": [None if n == 3 else f"${n}.50" for n in range(30)],
            "made": [datetime.date(2000 + n % 5, 1, 2) for n in range(30)],
            "on_sale": [n % 4 == 0 for n in range(30)],
            "vector": [[0.5, 1.0]] * 30,
        }
    )


def read(interactions: Any, items: Any = None, least: float | None = None, **named: str) -> OwnData:
    return load_own_data(Tables(interactions, items, **named), columns=Columns(min_rating=least))


def as_files(suffix: str, tmp_path: Path) -> Callable[[pd.DataFrame, str], Path]:
    def write(frame: pd.DataFrame, name: str) -> Path:
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep=";" if suffix == ".csv" else "\t")
        return path

    return write


@pytest.fixture(scope="module")
def expected() -> OwnData:
    return read(visits(), goods(), user="customer")


def check_same(found: OwnData, expected: OwnData) -> None:
    assert found.catalogue.item_ids == expected.catalogue.item_ids
    assert found.catalogue.titles == expected.catalogue.titles
    assert found.catalogue.attributes == expected.catalogue.attributes
    assert torch.equal(found.catalogue.item_attributes, expected.catalogue.item_attributes)
    assert found.catalogue.texts == expected.catalogue.texts
    assert list(found.catalogue.numbers) == list(expected.catalogue.numbers)
    for name, column in expected.catalogue.numbers.items():
        assert torch.equal(found.catalogue.numbers[name].nan_to_num(-1), column.nan_to_num(-1))
    assert found.interactions.user_ids == expected.interactions.user_ids
    for one, other in zip(found.interactions.sequences, expected.interactions.sequences, strict=True):
        assert torch.equal(one, other)


def test_a_data_frame_is_used_for_all_that_it_says(expected: OwnData) -> None:
    catalogue = expected.catalogue
    assert catalogue.item_ids[:3] == ("0", "1", "2")
    assert catalogue.titles[:2] == ("0", "Lamp 1")
    assert catalogue.attributes == ("blue", "green", "lamp", "red")
    assert catalogue.attribute_names(1) == ("green", "lamp")
    assert catalogue.texts == {"on_sale": tuple("on sale" if n % 4 == 0 else "" for n in range(30))}
    assert catalogue.numbers["price"][[1, 2]].tolist() == [1.5, 2.5]
    assert catalogue.numbers["price"][3].isnan()
    assert catalogue.numbers["year"][:6].tolist() == [2000, 2001, 2002, 2003, 2004, 2000]
    assert expected.interactions.user_ids[:2] == ("100", "101")
    assert expected.reading == (
        "interactions, 72 rows: user 'customer', item 'sku', time 'ts' (2024-01-01 to 2024-01-05), no rating, "
        "no request; not used: 'note'",
        "items, 30 rows: item 'sku', title 'name', attributes 'category'",
        "attributes: column 'category', cut at the commas of lists in brackets: 'lamp' (15), 'blue' (10), 'green' (10),"
        " 'red' (10)",
        "texts: 'on_sale'; numbers: 'price', 'year'; columns not read: 'vector'",
        "warning: 1 item without a title in column 'name', called by the id",
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tsv.gz", ".parquet"])
def test_files_are_read_as_frames(suffix: str, expected: OwnData, tmp_path: Path) -> None:
    write = as_files(suffix, tmp_path)
    data = read(str(write(visits(), "visits")), write(goods(), "goods"))
    check_same(data, expected)
    assert data.name == f"visits{suffix} and goods{suffix}"
    assert f"goods{suffix}" in data.reading[1]


@pytest.mark.parametrize(
    "convert",
    [
        pl.from_pandas,
        lambda frame: pl.from_pandas(frame).lazy(),
        lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
        lambda frame: datasets.Dataset.from_pandas(frame, preserve_index=False).with_format("numpy"),
        lambda frame: frame.set_index("sku"),
        lambda frame: frame.assign(sku=frame["sku"].astype(float)),
        lambda frame: frame.assign(sku=frame["sku"].astype("Int64")),
        lambda frame: frame.assign(sku=frame["sku"].astype("category")),
    ],
    ids=["polars", "lazy", "arrow", "datasets", "index", "float", "Int64", "category"],
)
def test_frames_of_all_kinds_are_read_the_same(convert: Callable[[pd.DataFrame], Any], expected: OwnData) -> None:
    check_same(read(convert(visits()), convert(goods())), expected)


def test_rows_of_a_dataset_that_were_chosen(expected: OwnData) -> None:
    twice = datasets.Dataset.from_pandas(pd.concat([goods(), goods()]), preserve_index=False).select(range(30))
    check_same(read(visits(), twice), expected)


def test_atomic_files_and_tables_are_read_by_one_path(folder: Path) -> None:
    known, _ = load_dataset(folder)
    found, _ = load_dataset(Tables(folder / "tales.inter", folder / "tales.item"))
    assert (found.item_ids, found.attributes) == (known.item_ids, known.attributes)


def test_without_a_table_of_items(expected: OwnData) -> None:
    both = visits().merge(goods(), on="sku")
    data = read(both.assign(quantity=range(len(both))))
    order = [expected.catalogue.item_ids.index(item) for item in data.catalogue.item_ids]
    assert torch.equal(data.catalogue.item_attributes, expected.catalogue.item_attributes[order])
    assert "price" in data.catalogue.numbers
    assert "quantity" not in data.catalogue.numbers  # it differs between the visits of an item
    with pytest.raises(DataError, match=r"columns there: 'customer', 'sku', 'ts', 'note'. There is no table of items"):
        read(visits())


def test_items_under_another_name(expected: OwnData) -> None:
    items = goods().rename(columns={"sku": "id"}).assign(artist=["x", "y"] * 15)  # which names no item
    assert read(visits(), items).catalogue.item_ids == expected.catalogue.item_ids
    with pytest.raises(DataError, match=r"items: columns missing: sku; columns there: 'key', .*rename one of both"):
        read(visits(), goods().rename(columns={"sku": "key"}))


def test_ratings_and_requests() -> None:
    frame = visits().assign(stars=["4,5", "2,0"] * 36, wish=[None, "something red"] * 36)
    data = read(frame, goods(), 4, request="wish", rating="stars")
    assert data.interactions.dropped_ratings == 36
    assert not any(data.own_requests("test") or ())  # those with a wish are rated 2
    assert "something red" in (read(frame, goods(), request="wish").own_requests("test") or ())
    with pytest.raises(DataError, match=r"columns missing: rating; .*min_rating=4 needs ratings.*--rating"):
        read(visits(), goods(), 4)


def test_few_visits_of_unknown_items_are_left_out_and_said() -> None:
    frame = visits()
    frame.loc[[5, 11], "sku"] = [98, 99]
    data = read(frame, goods())
    assert data.interactions.dropped_visits == 2
    assert "warning: 2 visits of 2 items without a row among the items left out: '98', '99'" in data.reading
    frame["sku"] += 20
    with pytest.raises(DataError, match=r"interactions, row \d+: .* values of sku not in items: .*; there are '0'"):
        read(frame, goods())


def test_many_visits_at_one_time_are_said() -> None:
    robot = pd.DataFrame({"customer": 7, "sku": [n % 10 for n in range(10_000)], "ts": START})
    data = read(pd.concat([visits(), robot], ignore_index=True), goods())
    assert "warning: user '7' has 10,000 visits at one time, 2024-01-01: hardly a person's" in data.reading
    assert "9,990 more visits to an item that the user had met left out" in data.describe()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": "soon"}, r"interactions, row r7: ts is soon \(1 such row\), expected a finite number, or in all rows"),
        ({"sku": None}, r"interactions, row r7: column 'sku' is blank \(1 such row\)"),
        ({"customer": ""}, r"interactions, row r7: column 'customer' is blank"),
    ],
)
def test_errors_name_the_column_the_row_and_the_value(change: dict[str, Any], message: str) -> None:
    frame = visits().astype(object)
    frame.index = pd.Index([f"r{n}" for n in range(len(frame))])
    for column, value in change.items():
        frame.loc["r7", column] = value
    with pytest.raises(DataError, match=message):
        read(frame, goods())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "interactions: found NoneType, expected a data frame of pandas or polars"),
        ({"train": visits()}, r"interactions: found dict of 'train', expected .*\(one split\)"),
        (visits().head(0), "interactions: no rows; columns there: 'customer'"),
        (visits().set_axis(["a", "a", "b", "c"], axis=1), "the columns 'a' are there more than once"),
        (visits().set_axis(["a", "b", "c", "d"], axis=1), "columns missing: user_id, item_id, timestamp; .*'a', 'b'"),
        ("shop.xlsx", r"shop.xlsx: found a file .xlsx, expected .csv"),
        ("nowhere.csv", "nowhere.csv does not exist"),
        ("nowhere.parquet", "not a Parquet file that can be read"),
    ],
)
def test_what_is_no_table_is_named(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(given, goods())


def test_a_data_frame_alone_says_what_takes_it() -> None:
    with pytest.raises(DataError, match=r"data: found DataFrame, expected .* Tables\(interactions=…, items=…\)"):
        load_dataset(visits())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (17, "17"),
        (np.int64(17), "17"),
        (np.float64("nan"), ""),
        (None, ""),
        (pd.NA, ""),
        (pd.NaT, ""),
        (True, "True"),
        (b"ab", "ab"),
        ("a\r\n b", "a b"),
        (pd.Timestamp("2024-01-31 12:00"), "2024-01-31 12:00:00"),
        (["a", None, "b, c"], '["a", "b, c"]'),
        (np.array(["é"]), '["é"]'),
        ({"b", "a"}, '["a", "b"]'),
        ([{"name": "x"}], '[{"name": "x"}]'),
        ([datetime.date(2024, 1, 2)], '["2024-01-02"]'),
    ],
)
def test_cells_as_text(cell: Any, text: str) -> None:
    assert cell_text(cell) == text
    assert not text.startswith("[") or json.loads(text)
