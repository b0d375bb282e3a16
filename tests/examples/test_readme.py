"""What README.md shows: its code runs on a plain install's encoder, and its requests are heard as it says."""

import re
from pathlib import Path

import pytest
import torch

from cramer_peft.recsys.data.catalogue import Catalogue

PAGE = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NEAR = re.compile(r" \(near [^)]*\)")  # of another catalogue other words are near
FILMS = {  # title: year, visits, genres
    "Toy Story": (1995, 900, "Animation Children's Comedy"),
    "Alien": (1979, 700, "Horror Sci-Fi Thriller"),
    "Psycho": (1960, 300, "Horror Romance Thriller"),
    "Top Hat": (1935, 20, "Comedy Musical Romance"),
    "The Gay Divorcee": (1934, 10, "Comedy Musical Romance"),
    "Gigi": (1958, 30, "Musical"),
    "Casablanca": (1942, 500, "Drama Romance War"),
    "Titanic": (1997, 800, "Action Drama Romance"),
    "Speed": (1994, 600, "Action Romance Thriller"),
    "Heat": (1995, 200, "Action Crime Thriller"),
    "Fargo": (1996, 550, "Crime Drama Thriller"),
    "A Goofy Movie": (1995, 40, "Animation Children's"),
    "The Muppet Movie": (1979, 60, "Children's Comedy Musical"),
    "Babe": (1995, 250, "Children's Comedy Drama"),
}


def rows() -> list[tuple[str, str]]:
    table = PAGE.split("| you say | it hears |\n| --- | --- |\n")[1].split("\n\n")[0]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()]  # type: ignore[misc]


def test_the_code_does_something(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert 10 <= len(block.split("torch.manual_seed")[1].splitlines()) <= 17  # without imports
    exec(block, {})
    exciting, before, quiet = map(float, re.findall(r"\d\.\d*", capsys.readouterr().out))
    assert exciting > 0.8 > before > 0.2 > quiet


def test_the_table_is_there() -> None:
    assert len(rows()) == 8
    assert {request for request, heard in rows() if "nothing understood" in heard} == {
        "I'm sad, cheer me up",
        "a film where he wakes up on the same day again and again",
        "etwas Lustiges ohne Horror",
    }


@pytest.mark.parametrize(("request_", "heard"), rows())
def test_requests_are_heard_as_it_says(request_: str, heard: str) -> None:
    for package in ("wordllama", "snowballstemmer", "rapidfuzz"):
        pytest.importorskip(package)
    from cramer_peft.recsys.requests.heard import heard_line
    from cramer_peft.recsys.requests.hearing import HearingEncoder

    names = tuple(sorted({name for *_, genres in FILMS.values() for name in genres.split()}))
    flags = torch.tensor([[name in genres.split() for name in names] for *_, genres in FILMS.values()])
    years = torch.tensor([year for year, *_ in FILMS.values()], dtype=torch.float64)
    ids = tuple(map(str, range(len(FILMS))))
    catalogue = Catalogue(ids, tuple(FILMS), names, flags, numbers={"release_year": years})
    catalogue = catalogue.with_popularity([visits for _, visits, _ in FILMS.values()])
    found = heard_line(HearingEncoder(catalogue, None).hear(request_))
    assert NEAR.sub("", found) == NEAR.sub("", heard)
