from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.recsys.data import other_columns
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.items import Items, read_items

pytest.importorskip("pandas")


def read(tmp_path: Path, header: str, *rows: str, least: int = 1) -> Items:
    lines = [f"item_id:token\ttitle:str\tgenres:token_seq{header}"]
    lines += [f"i{number}\t{row}" for number, row in enumerate(rows)]
    (tmp_path / "x.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_items(read_atomic(tmp_path / "x.item"), Columns(min_attribute_items=least), "item_id")


def known(items: Items) -> dict[str, list[float | None]]:
    columns = items.catalogue.numbers.items()
    return {name: [None if value != value else value for value in column.tolist()] for name, column in columns}


def test_other_fields_become_texts_and_numbers(tmp_path: Path) -> None:
    header = "\tprice:float\tcost:token\ttags:str\trelease_year:token\tstock:int\tsize:token"
    items = read(
        tmp_path,
        header,
        "A\tX Y\t$5\t7\t pixar|fun \t1995\t3\t9",
        "B\tX\t—\t1,299.00\t['good \\'n bad', \"x\"]\tunknown\t4\tXL",
        "C\t\t5,99 €\t\t\tsoon\t\t",
        "D\t\t1e999\t.5\tNone\t2001\t1\t10",
    )
    assert items.catalogue.texts == {"tags": ("pixar|fun", "good 'n bad|x", "", ""), "size": ("9", "XL", "", "10")}
    assert known(items) == {
        "price": [5, None, 5.99, None],
        "cost": [7, 1299, None, 0.5],
        "release_year": [1995, None, None, 2001],
        "stock": [3, 4, None, 1],
    }
    assert items.unread == ()


def test_a_column_of_prices_says_what_it_could_not_read(tmp_path: Path) -> None:
    prices = [f"{number},50 €" for number in range(1, 28)]
    few = read(
        tmp_path, "\tprice:token", *(f"A\tX\t{price}" for price in [*prices, "auf Anfrage", "-", "k.A.", "1.299"])
    )
    assert known(few)["price"] == [*(number + 0.5 for number in range(1, 28)), None, None, None, 1299]
    assert few.describe()[-1] == (
        "warning: column 'price': line 29 holds 'auf Anfrage', which is not read as a number (2 such lines)"
    )
    many = read(tmp_path, "\tprice:token", *(f"A\tX\t{price}" for price in [*prices, *["auf Anfrage"] * 5]))
    assert (known(many), list(many.catalogue.texts)) == ({}, ["price"])
    assert (
        many.describe()[-1] == "warning: column 'price': read as text because of line 29: 'auf Anfrage' (5 such lines)"
    )
    words = read(tmp_path, "\tnote:token", *(f"A\tX\t{note}" for note in ["5", "soon", "late"]))
    assert not [line for line in words.describe() if "note" in line and "warning" in line]


def test_a_number_that_can_mean_two_is_said(tmp_path: Path) -> None:
    items = read(tmp_path, "\tprice:token", "A\tX\t89", "B\tX\t1.299")
    assert known(items)["price"] == [89, 1.299]
    assert items.describe()[-1] == (
        "warning: column 'price': line 3 holds '1.299', read as 1.299: no cell shows whether "
        "decimals follow a point or a comma"
    )


def test_paths_are_cut_and_single_attributes_are_not(tmp_path: Path) -> None:
    paths = read(tmp_path, "", "A\tOutdoor > Tents", "B\tOutdoor > Cooking > Stoves", "C\tBooks")
    assert paths.catalogue.attributes == ("Books", "Cooking", "Outdoor", "Stoves", "Tents")
    assert paths.describe()[0].startswith("attributes: column 'genres', cut at '>': 'Outdoor' (2)")
    single = read(tmp_path, "", "A\tTents", "B\tStoves")
    assert single.describe()[0] == (
        "attributes: column 'genres', one in each cell, without spaces: 'Stoves' (1), 'Tents' (1)"
    )


def test_ids_addresses_and_empty_fields_are_not_read(tmp_path: Path) -> None:
    header = "\timdb_id:token\ttmdbId:token\tphoto:token\tvector:float_seq\tweight:float\tnote:str"
    items = read(tmp_path, header, "A\tX\ttt1\t12\thttps://x/1\t1 2\t?\t", "B\tX\ttt2\t13\t\t1 2\theavy\t-")
    assert (items.catalogue.texts, known(items)) == ({}, {})
    assert items.unread == ("imdb_id", "tmdbId", "photo", "vector", "weight", "note")


def test_years_of_titles(tmp_path: Path) -> None:
    rows = ["A (1995)\tX", "B (1999-2003) \tX", "C (2001– )\tX", "(500) Days\tX", "1984\tX"]
    assert known(read(tmp_path, "", *rows)) == {"year": [1995, 1999, 2001, None, None]}
    assert known(read(tmp_path, "", *rows, "E\tX", "F\tX")) == {}  # fewer than half of the titles
    with_years = read(tmp_path, "\tYear made:token", *(f"{row}\t{year}" for year, row in enumerate(rows)))
    assert list(known(with_years)) == ["Year made"]


def test_a_field_of_texts_that_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_columns, "MAX_CATALOGUE_BYTES", 40)
    items = read(tmp_path, "\tplot:str\ttags:str", f"A\tX\t{'long ' * 9}\tfun")
    assert (items.catalogue.texts, items.unread) == ({"tags": ("fun",)}, ("plot",))


def test_it_says_how_attributes_were_read_and_what_looks_wrong(tmp_path: Path) -> None:
    listed = read(tmp_path, "\tsku:token", "A\tRain Jackets, Running Shoes\ts1", "B\tRain Jackets\ts2", "C\t\ts3")
    assert listed.describe() == [
        "attributes: column 'genres', cut at ',': 'Rain Jackets' (2), 'Running Shoes' (1)",
        "texts: none; numbers: none; columns not read: 'sku'",
    ]
    rows = [f"T\tX Film{' Rock, Pop' if number == 0 else ''}" for number in range(20)]
    lines = read(tmp_path, "", *rows).describe()
    assert lines[2:] == [
        "warning: attributes that begin or end with a separator (name the right attribute_separator): 'Rock,'",
        "warning: attributes of one letter, which hardly anybody asks for: 'X'",
        "warning: attributes on every item, which tell none apart: 'Film', 'X'",
    ]


@given(cell=st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])))
def test_a_field_of_no_use_may_hold_anything(cell: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    items = read(tmp_path_factory.mktemp("items"), "\tprice:float\tnote:str", f"A\tX\t{cell}\t{cell}", "B\tX\t1\tb")
    assert len(items.catalogue.numbers["price"]) == 2
    items.catalogue.save(tmp_path_factory.mktemp("items") / "catalogue.json")
