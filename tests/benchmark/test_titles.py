from pathlib import Path

import pytest
import torch
from benchmark.titles import TitleIndex, read_years, split_year, title_key
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue


def make_catalogue(*titles: str, ids: tuple[str, ...] | None = None) -> Catalogue:
    names = ids or tuple(f"i{index}" for index in range(len(titles)))
    return Catalogue(names, titles, (), torch.zeros(len(titles), 0, dtype=torch.bool))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Big Lebowski, The", "The Big Lebowski"),
        ("Avventura, L'", "L\u2019Avventura"),
        ("AMÉLIE", "Amelie"),
        ("Fast & Furious", "Fast and Furious"),
        ("Star Wars: Episode IV - A New Hope", "star wars  episode iv: a new hope"),
        ("Ocean's Eleven", "Oceans Eleven"),
        ("WALL\u00b7E", "wall-e"),
        ("Lego\u2122", "legoTM"),
    ],
)
def test_spellings_that_are_one(one: str, other: str) -> None:
    assert title_key(one) == title_key(other) != ""


@pytest.mark.parametrize(("one", "other"), [("Alien", "Aliens"), ("It", "It Follows"), ("Rocky II", "Rocky III")])
def test_spellings_that_are_two(one: str, other: str) -> None:
    assert title_key(one) != title_key(other)


@given(st.text(max_size=40))
def test_a_key_is_its_own_key(title: str) -> None:
    assert title_key(title_key(title)) == title_key(title)


@given(st.from_regex(r"[A-Za-z][a-z ]{0,20}", fullmatch=True), st.integers(1000, 9999))
def test_years_come_off(title: str, year: int) -> None:
    assert split_year(f"{title} ({year}) ") == (title.strip(), year)
    assert split_year(title) == (title.strip(), None)


@pytest.mark.parametrize("title", ["1941", "(2012)", "Se7en (1)", "X (19950)", "X (1995) again"])
def test_no_year_at_the_end(title: str) -> None:
    assert split_year(title) == (title, None)


def test_long_titles_take_no_time() -> None:
    for title in (" " * 9_000 + "x", "(" * 9_000, ", a" * 3_000, "a.k.a." + " " * 9_000):
        assert split_year(title)[1] is None
        title_key(title)
        TitleIndex(make_catalogue(title))


def test_years_tell_remakes_apart() -> None:
    index = TitleIndex(make_catalogue("Sabrina", "Sabrina", "Up"), years=[1954, 1995, None])
    assert index.find("Sabrina (1995)") == (1,)
    assert index.find("sabrina") == (0, 1)
    assert index.find("Sabrina (2001)") == ()
    assert index.find("Up (2009)") == (2,)  # its year is not known, so it is not another one
    assert index.find("Down") == index.find("") == index.find("?!") == ()


def test_years_out_of_titles_and_ids() -> None:
    assert TitleIndex(make_catalogue("Heat (1995)", "Heat (1986)")).find("Heat (1986)") == (1,)
    ids = ("Heat (1995)", "Heat (1986)")
    assert TitleIndex(make_catalogue("Heat", "Heat", ids=ids)).find("Heat (1995)") == (0,)


@pytest.mark.parametrize(
    "name",
    ["Seven (1995)", "Se7en (1995)", "seven a.k.a. se7en (crimes, the) (1995)", "The Crimes (1995)", "Crimes, The"],
)
def test_other_names_in_brackets(name: str) -> None:
    assert TitleIndex(make_catalogue("Seven (a.k.a. Se7en) (Crimes, The) (1995)")).find(name) == (0,)


def test_years_must_fit() -> None:
    with pytest.raises(DataError, match="years: found 1, expected one for each of the 2 items"):
        TitleIndex(make_catalogue("a", "b"), years=[1999])


@pytest.mark.parametrize("kind", ["token", "float"])
def test_years_of_an_item_file(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "a.item"
    path.write_text(f"item_id:token\trelease_year:{kind}\na\t1995\nb\t\nc\t2001\n")
    assert read_years(path) == (1995, None, 2001)
    with pytest.raises(DataError, match=r"a\.item: fields missing: year; fields there: item_id, release_year"):
        read_years(path, column="year")


@pytest.mark.parametrize(("kind", "value"), [("token", "about 1990"), ("float", "1995.5"), ("float", "-3")])
def test_bad_years(tmp_path: Path, kind: str, value: str) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "a.item"
    path.write_text(f"item_id:token\trelease_year:{kind}\na\t1995\nb\t{value}\n")
    with pytest.raises(DataError, match=r"a\.item, line 3: the year is '.*', expected a whole number"):
        read_years(path)
