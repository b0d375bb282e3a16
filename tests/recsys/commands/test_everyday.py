"""The demo's everyday requests are about what a catalogue holds."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cramer_peft.recsys.commands.everyday import everyday_requests, shown_title
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.heard import Heard, HeardPart


@pytest.fixture
def films() -> Catalogue:
    flags = torch.zeros(40, 3, dtype=torch.bool)
    flags[:, 0], flags[:9, 1], flags[:5, 2] = True, True, True
    titles = tuple(f"Tale {item}" for item in range(40))
    return Catalogue(tuple(map(str, range(40))), titles, ("Drama", "Sci-Fi", "War"), flags)


def recommender(catalogue: Catalogue, deaf: str = "nothing") -> Any:
    def hear(text: str) -> Heard:
        return Heard() if deaf in text else Heard((HeardPart(text, "words", True, text),))

    return SimpleNamespace(catalogue=catalogue, hear=hear)


def test_of_every_kind_the_first_three(films: Catalogue) -> None:
    years = torch.tensor([1934.0] * 9 + [1952.0] * 11 + [1999.0] * 19 + [torch.nan], dtype=torch.float64)
    known = replace(films, numbers={"release_year": years}).with_popularity([*range(39), 0])
    asked = ["something like Tale 38", "something from the 1950s", "hidden gems, not the usual blockbusters"]
    assert everyday_requests(recommender(known)) == asked
    attributes = "something with war, but no drama"
    assert everyday_requests(recommender(known, deaf="hidden")) == [*asked[:2], attributes]


def test_a_catalogue_without_numbers(films: Catalogue) -> None:
    assert everyday_requests(recommender(films)) == ["something like Tale 0", "something with war, but no drama"]
    few = replace(films, numbers={"year": torch.arange(1000, 1400, 10, dtype=torch.float64)})
    assert everyday_requests(recommender(few)) == everyday_requests(recommender(films))


def test_titles_with_years(films: Catalogue) -> None:
    assert shown_title(films, 0) == "Tale 0 (Drama, Sci-Fi, War)"
    years = torch.tensor([1934.0, torch.nan, 1999.0] + [1950.0] * 37, dtype=torch.float64)
    titles = ("Tale 0", "Tale 1", "Tale 2 (1999)", *films.titles[3:])
    dated = replace(films, titles=titles, numbers={"year": years})
    shown = ["Tale 0 (1934, Drama, Sci-Fi, War)", "Tale 1 (Drama, Sci-Fi, War)", "Tale 2 (1999) (Drama, Sci-Fi, War)"]
    assert [shown_title(dated, item) for item in range(3)] == shown


def test_a_catalogue_without_attributes(films: Catalogue) -> None:
    bare = replace(films, attributes=(), item_attributes=torch.zeros(40, 0, dtype=torch.bool))
    assert everyday_requests(recommender(bare)) == ["something like Tale 0"]
