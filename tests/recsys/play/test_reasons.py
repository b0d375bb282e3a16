"""What the page tells of an item has to do with what was heard, and is true of the item."""

from __future__ import annotations

import pytest

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.play.people import visits_of
from cramer_peft.recsys.play.reasons import reasons_for
from cramer_peft.recsys.requests.heard import Heard, HeardPart
from cramer_peft.recsys.requests.number_columns import columns_of_numbers


def told(films: Catalogue, item: int, heard: Heard | None) -> list[dict[str, str]]:
    return reasons_for(films, item, heard, columns_of_numbers(films), visits_of(films))


@pytest.mark.parametrize(
    ("item", "kind", "meaning", "wanted", "expected"),
    [
        (1, "attribute", "comedy", True, ("comedy", "wanted")),
        (1, "attribute", "comedy", False, ("comedy", "unwanted")),
        (2, "attribute", "comedy", True, ("not comedy", "lacking")),
        (2, "attribute", "comedy", False, None),
        (2, "title", "Toy Story (1982)", True, ("is Toy Story", "wanted")),
        (6, "title", "Toy Story (1982)", True, ("shares 1 of 1 with Toy Story", "wanted")),
        (1, "title", "Toy Story (1982)", True, ("shares nothing with Toy Story", "lacking")),
        (7, "number", "year 1980 to 1990", True, ("year 1987", "neutral")),
        (7, "number", "price up to 5", True, None),
        (7, "popularity", "little known", True, ("met 33 times", "neutral")),
        (7, "words", "quirky", True, ("“quirky” in its tags", "wanted")),
        (8, "words", "quirky", True, None),
        (8, "habit", "what you usually choose", True, None),
    ],
)
def test_a_fact_for_each_kind(
    films: Catalogue, item: int, kind: str, meaning: str, wanted: bool, expected: tuple[str, str] | None
) -> None:
    heard = Heard((HeardPart("toy story", kind, wanted, meaning),))
    found = [(reason["text"], reason["side"]) for reason in told(films, item, heard)]
    assert found == ([] if expected is None else [expected])


def test_a_fact_is_told_once(films: Catalogue) -> None:
    known = (
        HeardPart("gems", "popularity", True, "little known"),
        HeardPart("hits", "popularity", False, "well known"),
    )
    assert len(told(films, 3, Heard(known))) == 1
    assert told(films, 3, None) == []


def test_a_name_that_is_not_a_title(films: Catalogue) -> None:
    assert told(films, 3, Heard((HeardPart("tale", "title", True, "Tale 3 and 30 more"),))) == []
