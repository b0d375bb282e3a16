"""What README.md shows: its code runs on a plain install's encoder, and its requests are heard as it says."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from cramer_peft.recsys.data.catalogue import Catalogue

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NEAR = re.compile(r" \(near [^)]*\)")  # of another catalogue other words are near
FILMS = {  # title: year, visits, genres
    "Toy Story": (1995, 900, "Animation Children's Comedy"),
    "Alien": (1979, 700, "Horror Sci-Fi Thriller"),
    "Blade Runner": (1982, 400, "Film-Noir Sci-Fi"),
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


def heard_lines() -> list[tuple[str, str]]:
    block = PAGE.split("## What it hears")[1].split("```text\n")[1].split("```")[0]
    return [tuple(part.strip() for part in line.split("→")) for line in block.splitlines()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def films() -> Catalogue:
    names = tuple(sorted({name for *_, genres in FILMS.values() for name in genres.split()}))
    flags = torch.tensor([[name in genres.split() for name in names] for *_, genres in FILMS.values()])
    years = torch.tensor([year for year, *_ in FILMS.values()], dtype=torch.float64)
    ids = tuple(map(str, range(len(FILMS))))
    catalogue = Catalogue(ids, tuple(FILMS), names, flags, numbers={"release_year": years})
    return catalogue.with_popularity([visits for _, visits, _ in FILMS.values()])


@pytest.fixture(scope="module")
def recommender(films: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recommender ``cramer-demo`` in it, which is not trained."""
    for package in ("wordllama", "snowballstemmer", "rapidfuzz", "typer"):
        pytest.importorskip(package)
    from cramer_peft import RequestMaskConfig
    from cramer_peft.recsys import RequestRecommender, request_encoder, save_backbone
    from cramer_peft.recsys.backbones import SASRec
    from cramer_peft.recsys.masks import mask_backbone

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("readme")
    model = SASRec(SASRec.configure(len(films), hidden_size=16)).eval()
    save_backbone(model, place / "cramer-demo", films)
    encoder = request_encoder(None, films, model, {"words": "wordllama"})
    masks = mask_backbone(model, films, RequestMaskConfig(init_weights=False), encoder)
    RequestRecommender(masks, films).save(place / "cramer-demo")
    return place


def test_it_is_short_and_begins_with_what_it_does() -> None:
    assert len(PAGE.splitlines()) <= 120
    tables = re.findall(r"^\|(.*)\|\n\| --- .*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert [(len(head.split("|")), rows.count("\n")) for head, rows in tables] == [(3, 4)]


def test_its_pages_and_their_sections_are_there() -> None:
    links = re.findall(r"\]\((docs/[\w./-]+)(?:#([\w-]+))?\)", PAGE)
    assert len(links) > 15
    for page, section in links:
        if page.endswith(".png"):
            assert (ROOT / page).stat().st_size > 10_000
            continue
        text = (ROOT / page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*?)(?: \{ #([\w-]+) \})?$", text, re.MULTILINE)
        names = {name or re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title, name in titles}
        assert not section or section in names, f"{page}#{section}"


def test_its_own_model_follows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in BLOCKS if "inject_request_masks" in block)
    exec(block, {})
    exciting, before, quiet = map(float, re.findall(r"\d\.\d*", capsys.readouterr().out))
    assert exciting > 0.8 > before > 0.2 > quiet


def test_the_recommender_answers_in_python(
    recommender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (block for block in BLOCKS if "RequestRecommender" in block)
    assert len(block.strip().splitlines()) == 6  # five of code
    monkeypatch.chdir(recommender)
    exec(block, {})
    titles = capsys.readouterr().out.splitlines()
    assert len(titles) == 10
    assert set(titles) < set(FILMS) - {"Alien", "Blade Runner"}


def test_the_first_request_is_heard_as_it_says(
    recommender: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cramer_peft.recsys.commands.app import main

    block = PAGE.split("```text\n$ ")[1].split("```")[0]
    monkeypatch.chdir(recommender)
    monkeypatch.setattr("sys.argv", shlex.split(block.split("\n\n")[0].replace("\\\n", "")))
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (heard,) = (line.strip() for line in block.splitlines() if line.startswith("  heard: "))
    assert heard in " ".join(capsys.readouterr().out.split())


def test_the_commands_have_the_options_that_it_names() -> None:
    pytest.importorskip("typer")
    from typer.main import get_command

    from cramer_peft.recsys.commands.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {name: {option for part in command.params for option in part.opts} for name, command in commands.items()}
    named = re.findall(r"cramer-peft (\w+)([^`#|]*)", PAGE)
    assert {name for name, _ in named} >= {"demo", "recommend", "train"}
    for name, rest in named:
        assert set(re.findall(r"(--\w[\w-]*)", rest.split("\n\n")[0])) <= known[name], name


def test_it_tells_what_is_not_heard() -> None:
    assert {request for request, heard in heard_lines() if "nothing understood" in heard} == {
        "I just broke up",
        "he wakes up on the same day again",
        "etwas Lustiges ohne Horror",
    }
    assert len(heard_lines()) == 8


@pytest.mark.parametrize(("request_", "heard"), heard_lines())
def test_requests_are_heard_as_it_says(request_: str, heard: str, films: Catalogue) -> None:
    for package in ("wordllama", "snowballstemmer", "rapidfuzz"):
        pytest.importorskip(package)
    from cramer_peft.recsys.requests.heard import heard_line
    from cramer_peft.recsys.requests.hearing import HearingEncoder

    found = heard_line(HearingEncoder(films, None).hear(request_))
    found = found.removesuffix(": the list is the one without a request")
    assert NEAR.sub("", found) == NEAR.sub("", heard)
