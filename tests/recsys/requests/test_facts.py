import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.encoders import WORD, one_form
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests import title_index
from cramer_peft.recsys.requests.facts import CatalogueFacts, Fact

# titles, their years, prices, minutes and visits
FILMS: list[tuple[str, float, float, float, float]] = [
    ("Toy Story (1995)", 1995, 12, 81, 90),
    ("Toy Story 2 (1999)", 1999, 14, 92, 40),
    ("Heat (1995)", 1995, 8, 170, 60),
    ("Seven (a.k.a. Se7en) (1995)", 1995, 9, 127, 50),
    ("Up (2009)", 2009, 15, 96, 55),
    ("It (2017)", 2017, 19, 135, 20),
    ("Big (1988)", 1988, 6, 104, 30),
    ("Fun (1994)", 1994, 5, 95, 1),
    ("Alien (1979)", 1979, 11, 117, 60),
    ("Jurassic Park (1993)", 1993, 13, 127, 80),
    ("Godfather, The (1972)", 1972, 21, 175, 85),
    ("Matrix, The (1999)", 1999, 13, 136, 88),
    ("Silence of the Lambs, The (1991)", 1991, 12, 118, 70),
    ("Star Wars: Episode IV - A New Hope (1977)", 1977, 16, 121, 99),
    ("Star Wars: Episode V - The Empire Strikes Back (1980)", 1980, 16, 124, 95),
    ("Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)", 2001, 17, 122, 25),
    ("Harry Potter and the Sorcerer's Stone (2001)", 2001, 18, 152, 45),
    ("Harry Potter and the Chamber of Secrets (2002)", 2002, 18, 161, 41),
    ("War of the Worlds (2005)", 2005, 10, 116, 15),
    ("Thriller (1983)", 1983, 7, 14, 2),
    ("Cinderella (1950)", 1950, 9, 74, 10),
    ("Cinderella (2015)", 2015, 19, 105, 12),
    ("Spider-Man (2002)", 2002, 14, 121, 33),
    ("2012 (2009)", 2009, 9, 158, 5),
]
ATTRIBUTES = ("Comedy", "Thriller", "War")


def catalogue(*columns: str) -> Catalogue:
    titles, *numbers = zip(*FILMS, strict=True)
    named = dict(zip(("release_year", "price", "runtime", "popularity"), numbers, strict=True))
    return Catalogue(
        tuple(map(str, range(len(FILMS)))),
        titles,
        ATTRIBUTES,
        torch.zeros(len(FILMS), len(ATTRIBUTES), dtype=torch.bool),
        numbers={name: torch.tensor(named[name], dtype=torch.float64) for name in columns},
    )


FULL = CatalogueFacts(catalogue("release_year", "price", "runtime", "popularity"))


def words_of(text: str) -> list[str]:
    return WORD.findall(one_form(text).lower())


def said(text: str, facts: CatalogueFacts = FULL) -> list[tuple[str, str, bool | None]]:
    words = words_of(text)
    return [(" ".join(words[f.start : f.stop]), f.meaning, f.wanted) for f in facts.find(words)]


def only(text: str, facts: CatalogueFacts = FULL) -> Fact:
    (found,) = facts.find(words_of(text))
    return found


def meant(fact: Fact) -> list[str]:
    return [FILMS[item][0] for item in fact.members.nonzero().flatten().tolist()]


@pytest.mark.parametrize(
    ("text", "words", "meaning"),
    [
        ("like Alien but lighter", "alien", "Alien (1979)"),
        ("I loved Heat", "heat", "Heat (1995)"),
        ("something like Toy Story", "toy story", "Toy Story (1995)"),
        ("in the spirit of The Godfather", "the godfather", "Godfather, The (1972)"),
        ("more of The Matrix", "the matrix", "Matrix, The (1999)"),
        ("something like Godfater please", "godfater", "Godfather, The (1972)"),
        ("movies like Jurasic Park", "jurasic park", "Jurassic Park (1993)"),
        ("similar to silence of lambs", "silence of lambs", "Silence of the Lambs, The (1991)"),
        ("a big fan of Se7en", "se7en", "Seven (a.k.a. Se7en) (1995)"),
        ("anything like Amélie?", "amélie", "Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)"),
        ("I enjoyed spiderman", "spiderman", "Spider-Man (2002)"),
        ("as in Star Wars: Episode IV - a new hope", None, "Star Wars: Episode IV - A New Hope (1977)"),
        ("like the empire strikes back", None, "Star Wars: Episode V - The Empire Strikes Back (1980)"),
        ("I loved Toy Story 2", "toy story 2", "Toy Story 2 (1999)"),
        ("I loved Cinderella (1950)", "cinderella ( 1950 )", "Cinderella (1950)"),
        ("like War of the Worlds", "war of the worlds", "War of the Worlds (2005)"),
        ("my favourite movie is Up.", "up", "Up (2009)"),
        ("reminds me of the matirx", "the matirx", "Matrix, The (1999)"),
        ("a mix of Alien and whatever", "alien", "Alien (1979)"),
    ],
)
def test_titles_that_the_sentence_announces(text: str, words: str | None, meaning: str) -> None:
    ((found, means, wanted),) = said(text)
    assert words is None or found == words
    assert means == meaning
    assert wanted is True


@pytest.mark.parametrize(
    "text",
    [
        "heat",
        "I want something up beat and big",
        "a thriller with heat",
        "I like fun",
        "I like big explosions",
        "something like big explosions",
        "I'd like up to three",
        "I loved it",
        "I have seen it already",
        "movies similar to it",
        "I like thriller",
        "something like thriller",
        "girls' night and big hats",
        "seven of them",
        "the previous one",
        "this never gets old",
        "I liked the matrixes of my maths class and godfathers",
    ],
)
def test_words_that_are_no_titles(text: str) -> None:
    assert said(text) == []


@pytest.mark.parametrize(
    "text", ['"Up" was great', "It (2017)", "Thriller (1983)!", "jurassic park", "the movie called Up"]
)
def test_titles_that_are_found_without_a_word_before(text: str) -> None:
    assert [fact.kind for fact in FULL.find(words_of(text))] == ["title"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nothing like Alien", False),
        ("I hated Heat", False),
        ("I didn't like Jurassic Park", False),
        ("I was not a big fan of Heat", False),
        ("why not something like Heat", True),
        ("no horror, something like Heat", True),
        ("not too violent like Heat", False),
        ("I am not into films with blood and murder like Heat", None),
        ("not Jurassic Park again", None),
        ("I haven't seen Heat", None),
        ("funnier than Alien", None),
    ],
)
def test_what_is_said_of_a_title(text: str, wanted: bool | None) -> None:
    assert only(text).wanted is wanted


def test_a_title_means_its_items_the_most_popular_most() -> None:
    wars = only("similar to Star Wars")
    assert wars.meaning == "Star Wars: Episode IV - A New Hope (1977) and 1 more"
    assert meant(wars) == [title for title, *_ in FILMS if title.startswith("Star Wars")]
    assert wars.members.max() == 1 == wars.members[13]
    assert only("I loved Cinderella").meaning == "Cinderella (2015) and 1 more"
    assert len(meant(only("movies like harry potter"))) == 2
    assert meant(only("I loved Heat")) == ["Heat (1995)"]


def test_several_titles() -> None:
    assert [fact[1] for fact in said("I loved Heat and Jurassic Park, but not like Up")] == [
        "Heat (1995)",
        "Jurassic Park (1993)",
        "Up (2009)",
    ]


def test_a_year_in_brackets_that_no_item_has_is_another_film() -> None:
    assert said("I loved Heat (1951)") == []
    assert said("I loved Spider-Man: Homecoming (2017)") == []
    assert only("I loved Star Wars: the empire (1980)").meaning.startswith("Star Wars: Episode V")


def test_the_year_of_the_words_before_a_title_is_not_asked_for() -> None:
    assert [fact[0] for fact in said("I loved the new Jurassic Park")] == ["jurassic park"]


def test_a_title_with_its_subtitle_is_one_fact() -> None:
    assert said("I loved Star Wars: The Empire Strikes Back") == [
        ("star wars : the empire strikes back", "Star Wars: Episode V - The Empire Strikes Back (1980)", True)
    ]


def test_words_of_attributes_are_left_alone_unless_a_longer_title_is_announced() -> None:
    words = words_of("a thriller from the 90s like War of the Worlds")
    war = words.index("war")
    assert [fact.meaning for fact in FULL.find(words, [(1, 2), (war, war + 1)])] == [
        "year 1990 to 1999",
        "War of the Worlds (2005)",
    ]
    assert [fact.kind for fact in FULL.find(words, [(war, len(words)), (1, 5)])] == []
    assert FULL.find(words_of("jurassic park"), [(0, 1)]) == []


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("from the 90s", "year 1990 to 1999"),
        ("movies from the 1950s", "year 1950 to 1959"),
        ("the nineties", "year 1990 to 1999"),
        ("90's films", "year 1990 to 1999"),
        ("'90s films", "year 1990 to 1999"),
        ("eighties", "year 1980 to 1989"),
        ("early nineties", "year 1990 to 1993"),
        ("before 1980", "year before 1980"),
        ("before the 80s", "year before 1980"),
        ("after 2010", "year after 2010"),
        ("since 2001", "year from 2001"),
        ("from 1994", "year 1994"),
        ("a 1994 comedy", "year 1994"),
        ("between 1990 and 1995", "year 1990 to 1995"),
        ("1990-1995", "year 1990 to 1995"),
        ("older than 1970", "year before 1970"),
        ("no older than 2001", "year from 2001"),
        ("newer than 2012", "year after 2012"),
        ("2001 or later", "year from 2001"),
        ("the last ten years", "year from 2008"),
        ("under 20", "price under 20"),
        ("less than 20 dollars", "price under 20"),
        ("at most 10 €", "price at most 10"),
        ("below $ 9.50", "price under 9.5"),
        ("between 10 and 15 euros", "price 10 to 15"),
        ("cheaper than ten", "price under 10"),
        ("over 100 minutes", "runtime over 100"),
        ("under two hours", "runtime under 120"),
        ("up to an hour and a half", "runtime at most 90"),
        ("runtime under 90", "runtime under 90"),
        ("shorter than 90", "runtime under 90"),
    ],
)
def test_numbers(text: str, meaning: str) -> None:
    fact = only(text)
    assert (fact.kind, fact.meaning) == ("number", meaning)
    assert fact.wanted is None
    column, low, high = {"year": 1, "price": 2, "runtime": 3}[meaning.split()[0]], -1e9, 1e9
    limits = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", meaning)]
    match = {
        "before": lambda value: value < limits[0],
        "under": lambda value: value < limits[0],
        "after": lambda value: value > limits[0],
        "over": lambda value: value > limits[0],
        "from": lambda value: value >= limits[0],
        "up": lambda value: value <= limits[0],
        "at": lambda value: value <= limits[0],
    }.get(meaning.split()[1], lambda value: limits[0] <= value <= limits[-1])
    assert low < high
    assert fact.members.tolist() == [float(match(film[column])) for film in FILMS]


@pytest.mark.parametrize(
    ("text", "column", "end"),
    [
        ("something recent", 1, 1),
        ("a new one", 1, 1),
        ("old movies", 1, -1),
        ("nothing modern", 1, 1),
        ("cheap", 2, -1),
        ("expensive", 2, 1),
        ("something short", 3, -1),
        ("a long one", 3, 1),
    ],
)
def test_sizes(text: str, column: int, end: int) -> None:
    members = only(text).members
    ranked = sorted(range(len(FILMS)), key=lambda item: -end * FILMS[item][column])
    assert members[ranked[: len(FILMS) // 5]].min() == 1
    assert members[ranked[len(FILMS) // 2 :]].max() == 0
    assert 0 < (members == 1).sum() < len(FILMS) / 2


@pytest.mark.parametrize(
    "text",
    ["an old friend", "as long as it is fun", "in New York", "ten years old", "in short", "in my 30s", "kids under 10"],
)
def test_words_that_measure_nothing(text: str) -> None:
    assert said(text) == []


@pytest.mark.parametrize("text", ["from the 90s", "cheap", "under 20", "short", "under two hours", "recent", "obscure"])
def test_without_the_column_nothing_is_found(text: str) -> None:
    assert said(text, CatalogueFacts(catalogue())) == []


def test_a_decade_without_items_is_not_found() -> None:
    assert said("from the 30s") == said("from the 1930s") == []


def test_the_only_column_of_numbers_is_meant_without_its_name() -> None:
    assert only("under 90", CatalogueFacts(catalogue("release_year", "runtime"))).meaning == "runtime under 90"


def test_items_without_a_number_are_not_meant() -> None:
    films = catalogue()
    years = torch.full((len(FILMS),), torch.nan, dtype=torch.float64)
    years[:3] = torch.tensor([1990.0, 1999.0, 2010.0])
    sparse = CatalogueFacts(
        Catalogue(
            *(getattr(films, name) for name in ("item_ids", "titles", "attributes")),
            films.item_attributes,
            numbers={"year": years, "popularity": years, "price": years * torch.nan},
        )
    )
    for text in ("from the 90s", "recent", "old", "before 2020"):
        assert only(text, sparse).members[3:].eq(0).all()
    assert said("cheap", sparse) == []


@pytest.mark.parametrize(
    ("text", "meaning", "wanted"),
    [
        ("hidden gems", "little known", None),
        ("lesser-known films", "little known", None),
        ("something obscure", "little known", None),
        ("underrated", "little known", None),
        ("popular ones", "well known", None),
        ("the big hits", "well known", None),
        ("not the usual blockbusters", "well known", False),
        ("no mainstream", "well known", False),
    ],
)
def test_popularity(text: str, meaning: str, wanted: bool | None) -> None:
    fact = only(text)
    assert (fact.kind, fact.meaning, fact.wanted) == ("popularity", meaning, wanted)
    most, least = 13, 7
    assert (fact.members[most], fact.members[least]) == ((1, 0) if meaning == "well known" else (0, 1))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("not what I usually watch", False),
        ("something different from what I usually read", False),
        ("something completely different", False),
        ("my usual", True),
        ("as always", True),
        ("what I normally buy", True),
        ("not my usual stuff", False),
    ],
)
def test_habit(text: str, wanted: bool) -> None:
    fact = only(text)
    assert (fact.kind, fact.wanted, fact.start, fact.stop) == ("habit", wanted, 0, len(words_of(text)))
    assert fact.members.shape == (len(FILMS),)
    assert not fact.members.any()


def test_without_rapidfuzz_names_are_met_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(title_index, "_has_rapidfuzz", lambda: False)
    assert said("something like godfater") == []
    assert only("something like the godfather").meaning == "Godfather, The (1972)"


PIECES = (
    "like loved not similar to of the a and or , . ( ) \" ' : & - heat up it big toy story star wars godfater 2012 95 "
    "90s the nineties under over between from $ 20 20.5 1,000 minutes hours half hidden gems blockbusters usually what "
    "i watch my usual recent cheap short long before after 99999999999999999999 ²³ ½ é 🎬 ß İ"
)
pieces_of_text = st.sampled_from(PIECES.split())
texts = st.lists(pieces_of_text, max_size=30).map(" ".join) | st.text(max_size=60)


@given(texts, st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), max_size=3))
def test_facts_lie_apart_within_the_words_and_never_raise(text: str, spans: list[tuple[int, int]]) -> None:
    words = words_of(text)
    taken = [(start, min(start + length, len(words))) for start, length in spans if start < len(words)]
    last = 0
    for fact in FULL.find(words, taken):
        assert last <= fact.start < fact.stop <= len(words)
        last = fact.stop
        assert fact.members.shape == (len(FILMS),)
        assert fact.members.dtype == torch.float32
        assert bool(((fact.members >= 0) & (fact.members <= 1)).all())
        assert 0 <= fact.certainty <= 1
        assert fact.meaning
        for start, stop in taken:
            outside = stop <= fact.start or fact.stop <= start
            within = fact.start <= start and stop <= fact.stop and stop - start < fact.stop - fact.start
            assert outside or (fact.kind == "title" and within)
    assert [fact.meaning for fact in FULL.find(words)] == [fact.meaning for fact in FULL.find(tuple(words))]


def test_empty_and_huge_requests() -> None:
    assert FULL.find([]) == []
    started = time.monotonic()
    assert FULL.find(words_of("like " * 5000)) == []
    assert FULL.find(words_of("x" * 100_000 + " like " + "y" * 100_000)) == []
    assert time.monotonic() - started < 30


def test_catalogues_without_titles_or_items() -> None:
    for titles in ((), ("",), ("(1995)", "!!!", "🎬")):
        empty = Catalogue(
            tuple(map(str, range(len(titles)))), titles, (), torch.zeros(len(titles), 0, dtype=torch.bool)
        )
        assert CatalogueFacts(empty).find(words_of("something like (1995) or !!! from the 90s")) == []
