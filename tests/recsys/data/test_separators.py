import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.recsys.data.separators import LIST, found_separator, pieces_of

WORD = st.text("abcXYZ-'&()0", min_size=1, max_size=6)
NAME = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("kind", "cells", "separator"),
    [
        ("token_seq", ["Rain Jackets, Running Shoes", "Rain Jackets", ""], ","),
        ("token", ["Action|Drama", "Drama"], "|"),
        ("token_seq", ["Action; Crime, Drama", "Drama"], ";"),
        ("token_seq", ["Rain Jackets / Sun Hats", "Sun Hats", "Rain Jackets"], "/"),
        ("token", ["War/Drama", "Drama", "War"], "/"),
        ("token", ["Sci-Fi/Fantasy Drama", "Drama War"], " "),
        ("token", ["Sci-Fi/Fantasy", "Drama"], " "),
        ("token_seq", ["Children's Sci-Fi", "Children&apos;s War", "War"], " "),
        ("token_seq", ["Rock, Pop", *["Rock Pop"] * 20], " "),
        ("str", ["Hair Care|Creams, Gels", "Creams, Gels"], "|"),
        ("str", ["Creams, Gels & Lotions", "Bath, Body", "Hair"], "|"),
        ("str", ["War, Drama", "Drama", "War, Comedy", "Comedy"], ","),
        ("str", ["['War', 'Drama']", "[]", "unknown"], LIST),
        ("token_seq", ["unknown", ""], " "),
        ("str", ["Outdoor > Tents", "Books > Maps, Guides", "Bags"], ">"),
        ("str", ["Outdoor>Tents", "Bags"], ">"),
        ("token", ["Outdoor / Tents", "Sci-Fi/Fantasy / War"], " / "),
        ("str", ["<Tents>", "<Bags>"], "|"),
        ("str", ["Outdoor > Tents", "Bags", "Maps"], "|"),
        ("str", ["Outdoor > Tents|Sale", "Bags > Dry Bags"], "|"),
        ("token", ["Outdoor > Tents|Sale", "Bags > Dry Bags"], "|"),
    ],
)
def test_separators_are_found_in_the_values(kind: str, cells: list[str], separator: str) -> None:
    assert found_separator(cells, kind) == separator


@given(st.lists(st.lists(WORD, max_size=4).map(" ".join)))
def test_plain_words_stay_separated_by_spaces(cells: list[str]) -> None:
    assert found_separator(cells, "token_seq") == " "


@given(st.lists(NAME, min_size=1).filter(lambda names: all("{" not in name for name in names)))
def test_lists_of_both_languages_are_read(names: list[str]) -> None:
    expected = pieces_of(json.dumps(names), LIST)
    assert len(expected) == len(names)
    assert pieces_of(json.dumps(names, ensure_ascii=False), LIST) == expected
    assert pieces_of(repr(names), LIST) == expected


def test_lists_of_objects_single_cells_and_entities() -> None:
    assert pieces_of("[{'id': 16, 'name': \"Kid's\"}, {'name': 'War', 'id': 1}]", LIST) == ["Kid's", "War"]
    assert pieces_of('[{"id": 16, "name": "Sci-Fi"}]', LIST) == ["Sci-Fi"]
    assert pieces_of("War", LIST) == ["War"]
    assert pieces_of("[War, Science Fiction]", LIST) == ["War", "Science Fiction"]
    assert pieces_of("Tom &amp; Jerry; War", ";") == ["Tom & Jerry", "War"]
