"""A made-up shop of films, which says of its items all that a catalogue can hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cramer_peft.encoders import RequestReader
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.hearing import HearingEncoder

# Ten items of each kind: its attribute, tags of every other item of the kind, and nouns of its titles.
KINDS = {
    "Comedy": (("slapstick", "wedding"), "Uncle Banana Parrot Cousin Tuba Picnic Landlord Poodle Holiday Sausage"),
    "Drama": (("courtroom", "grief"), "Letter Harbor Widow Verdict Orchard Silence Father Winter Bridge Teacher"),
    "Horror": (("zombies", "haunted house"), "Crypt Fang Cellar Scream Coffin Shadow Curse Butcher Attic Ghoul"),
    "Sci-Fi": (("robots", "space"), "Orbit Android Nebula Comet Laser Colony Reactor Circuit Moonbase Signal"),
    "War": (("soldiers", "submarine"), "Trench Bomber Sergeant Convoy Armada Bunker Rifle Marshal Fleet Siege"),
    "Western": (
        ("cowboys", "cattle drive"),
        "Saddle Canyon Sheriff Mustang Saloon Prairie Outlaw Rodeo Gulch Stagecoach",
    ),
}
NAMES = tuple(KINDS)
ITEMS, EACH = 60, 10


def place(kind: str, number: int) -> int:
    """The item of a kind with a number: kinds take turns."""
    return number * len(NAMES) + NAMES.index(kind)


def shop(items: int = ITEMS) -> Catalogue:
    """The first so many of the films; six in turn, of the six kinds, share a decade."""
    titles, tags, said = [], [], []
    for item in range(items):
        kind, number = NAMES[item % 6], item // 6
        own, nouns = KINDS[kind]
        titles.append(f"The {nouns.split()[number]} of {['Lisbon', 'Avalon', 'Dover'][number % 3]}")
        tags.append("|".join(own[: 1 + number % 2]))
        said.append("popcorn evening|silly disguises" if kind == "Comedy" and number % 2 else "")
    numbers = torch.arange(items)
    flags = torch.zeros(items, len(NAMES), dtype=torch.bool)
    flags[numbers, numbers % 6] = True
    return Catalogue(
        tuple(f"f{item}" for item in range(items)),
        tuple(titles),
        NAMES,
        flags,
        texts={"tags": tuple(tags), "said": tuple(said)},
        numbers={
            "year": (1950 + numbers // 12 * 10 + numbers % 10).double(),
            "price": (5 + numbers * 7 % 31).double(),
            "popularity": (numbers * 37 % 61 + 1).double() ** 2,
        },
    )


def vectors_of(items: int = ITEMS) -> Tensor:
    """Vectors of a backbone in which items of a kind are near each other."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(6, 8, generator=generator)
    noise = torch.randn(items, 8, generator=generator)
    return middles[torch.arange(items) % 6] + 0.5 * noise


@pytest.fixture(scope="session")
def films() -> Catalogue:
    return shop()


@pytest.fixture(scope="session")
def film_vectors() -> Tensor:
    return vectors_of()


@pytest.fixture(scope="session")
def shared_reader() -> RequestReader:
    pytest.importorskip("wordllama")
    return RequestReader()


@pytest.fixture(scope="session")
def hearing(films: Catalogue, film_vectors: Tensor, shared_reader: RequestReader) -> HearingEncoder:
    """The encoder with the static vectors, of all films."""
    pytest.importorskip("snowballstemmer")
    return HearingEncoder(films, film_vectors, shared_reader)
