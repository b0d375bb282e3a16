"""The people that the page offers have histories that can be recommended to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.play.people import made_up_people, people_of, surprise


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    """Catalogues with few items, with and without attributes and visits."""
    items, attributes = draw(st.integers(2, 12)), draw(st.integers(0, 4))
    rows = st.lists(st.booleans(), min_size=attributes, max_size=attributes)
    flags = torch.tensor([draw(rows) for _ in range(items)], dtype=torch.bool).reshape(items, attributes)
    names = tuple(map(str, range(items)))
    catalogue = Catalogue(names, names, tuple("abcd"[:attributes]), flags)
    visits = draw(st.none() | st.lists(st.integers(0, 100), min_size=items, max_size=items))
    return catalogue if visits is None else catalogue.with_popularity(visits)


@given(catalogues())
def test_every_history_leaves_something_to_recommend(catalogue: Catalogue) -> None:
    for _, history in [*made_up_people(catalogue), surprise(catalogue)]:
        assert 1 <= len(set(history)) == len(history) <= min(5, len(catalogue) - 1)
        assert set(history) <= set(range(len(catalogue)))


@given(catalogues())
def test_made_up_people_have_what_they_like_and_share_nothing(catalogue: Catalogue) -> None:
    people = dict(made_up_people(catalogue))
    for name, history in people.items():
        place = catalogue.attributes.index(name.split("“")[1].rstrip("”"))
        assert bool(catalogue.item_attributes[history, place].all())
    met = [item for history in people.values() for item in history]
    assert len(met) == len(set(met))


def test_the_best_known_item_is_the_last_one(films: Catalogue) -> None:
    assert dict(made_up_people(films))["Fan of “Drama”"][-1] == 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "x.item").write_text(
        "item_id:token\ttitle:token_seq\tgenres:token_seq\ni3\tA\tx\nother\tB\tx\ni7\tC\tx\n"
    )
    lines = ["anna\ti3\t2", "anna\ti7\t1", "anna\tother\t3", "ben\tother\t1"]
    (tmp_path / "x.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n")
    return tmp_path


def test_users_of_a_data_set_with_the_items_that_are_known(films: Catalogue, data: Path) -> None:
    assert people_of(data, films) == [("User anna: 2 titles, last Tale 3 of horror", [7, 3])]


def test_data_of_another_catalogue(films: Catalogue, data: Path) -> None:
    with pytest.raises(DataError, match="no user met an item of the recommender"):
        people_of(data, replace(films, item_ids=tuple(f"x{item}" for item in range(40))))
    with pytest.raises(DataError, match="nor a folder"):
        people_of(data / "nothing", films)


def test_columns_of_the_training_count(films: Catalogue, data: Path) -> None:
    path = data / "x.item"
    path.write_text(path.read_text().replace("genres:token_seq", "shelf:token_seq"))
    assert people_of(data, films, Columns(attribute_column="shelf")) == people_of(data, films, Columns(None, "shelf"))
    with pytest.raises(DataError, match="attribute_column"):
        people_of(data, films)
