"""Titles as people and files write them, between semicolons that may belong to them."""

import pytest
import torch

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.history_text import read_history

TITLES = (
    "Tom &amp; Jerry",
    "Tom",
    "Jerry Maguire",
    "Steins;Gate",
    "Gate, The",
    "Gabriel",
    "Alien",
    "Blade Runner",
    "Alien; Blade Runner",
    "Me; Myself; Irene",
    "Myself",
    "Rock &#38; Roll",
    "R&D;",
    "Sense &amp;amp; Sensibility",
    "item 7",
    "Twins",
    "twins",
)
CATALOGUE = Catalogue(
    tuple(f"id{place}" for place in range(len(TITLES))), TITLES, (), torch.zeros(len(TITLES), 0, dtype=torch.bool)
)


def read(text: str) -> list[str]:
    return [TITLES[item] for item in read_history(text, CATALOGUE)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tom &amp; Jerry", ["Tom &amp; Jerry"]),
        ("tom & jerry", ["Tom &amp; Jerry"]),
        ("Tom &#38; Jerry; Gabriel", ["Tom &amp; Jerry", "Gabriel"]),
        ("Tom; Jerry", ["Tom", "Jerry Maguire"]),
        ("Tom &amp; Jer; Tom", ["Tom &amp; Jerry", "Tom"]),  # a part of a title, with its entity
        ("Rock & Roll; Alien", ["Rock &#38; Roll", "Alien"]),
        ("Sense & Sens; Sense &amp;amp; Sensibility", ["Sense &amp;amp; Sensibility"] * 2),
        ("R&D; Alien; R&D;", ["R&D;", "Alien", "R&D;"]),
        ("Steins;Gate", ["Steins;Gate"]),
        (" steins ; gate ;The Gate", ["Steins;Gate", "Gate, The"]),
        ("Steins;Ga; Tom", ["Steins;Gate", "Tom"]),  # not Gabriel
        ("Me; Myself; Irene; Myself", ["Me; Myself; Irene", "Myself"]),
        ("Me; Myself; Ire", ["Me; Myself; Irene"]),
        ("Alien; Jerry; Alien", ["Alien", "Jerry Maguire", "Alien"]),
        ("Blade Runner; Alien", ["Blade Runner", "Alien"]),
        ("item_id=id8; item_id=id15", ["Alien; Blade Runner", "Twins"]),
        ("item; item_id=id16;", ["item 7", "twins"]),
        (";; Gabriel ;", ["Gabriel"]),
    ],
)
def test_titles_as_they_are_written(text: str, expected: list[str]) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Alien; Blade Runner", r"can be read in 2 ways, such as 'Alien \| Blade Runner'.*by their ids: item_id="),
        ("Tom; Alien; Blade Runner", "can be read in 2 ways"),
        ("Gabriel; Steins; Gone", "No title matches 'Gone'"),
        ("Twins", "2 items have the title 'Twins': item_id 'id15', 'id16'"),
        ("item_id=twins", "No item has the item_id 'twins'"),
        ("Tom &amp; Jarry", "No title matches 'Tom & Jarry'. Nearest: 'Tom &amp; Jerry'"),
        (" ; ;", "the history is empty"),
        ("&semi;", "the history is empty"),
    ],
)
def test_what_may_mean_other_items_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(text)


def test_a_long_history_is_read_quickly() -> None:
    names = ["Me; Myself; Irene", "Steins;Gate", "Gabriel", "Tom &amp; Jerry"] * 200
    assert read("; ".join(names)) == names


@pytest.mark.parametrize("value", [5, None, ["Alien"], 1.5])
def test_names_that_are_no_texts(value: object) -> None:
    with pytest.raises(DataError, match=r"title: found .*expected a text"):
        CATALOGUE.find_title(value)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"item_id: found .*expected a text"):
        CATALOGUE.index_of(value)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"history: found .*expected a text"):
        read_history(value, CATALOGUE)  # type: ignore[arg-type]
