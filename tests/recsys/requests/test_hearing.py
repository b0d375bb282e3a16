from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.encoders import HashingEncoder, RequestReader
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES

pytest.importorskip("wordllama")
pytest.importorskip("snowballstemmer")


def scores(encoder: HearingEncoder, vector: Tensor) -> Tensor:
    """How well each item answers a request's vector: by what is wanted less what is not."""
    wanted, unwanted = vector.view(2, -1)
    found: Tensor = encoder.features @ (wanted - unwanted)
    return found


def lead(encoder: HearingEncoder, request: str, members: Tensor) -> float:
    """How much higher the members lie than the others under a request, on average."""
    found = scores(encoder, encoder.encode([request])[0])
    return float(found[members].mean() - found[~members].mean())


def kind(films: Catalogue, name: str) -> Tensor:
    return films.item_attributes[:, films.attributes.index(name)]


def tagged(films: Catalogue, word: str, column: str = "tags") -> Tensor:
    return torch.tensor([word in text for text in films.texts[column]])


def heard(encoder: HearingEncoder, request: str, *before: str) -> list[tuple[str, str, bool]]:
    return [(part.kind, part.meaning, part.wanted) for part in encoder.listen(request, before)[0].parts]


def test_a_feeling_is_no_wish_beside_one(hearing: HearingEncoder) -> None:
    found = hearing.hear("more robots, I feel grief and slapstick today, make me laugh")
    assert ("robots", True) in [(part.text, part.wanted) for part in found.parts]
    assert not {"grief", "slapstick"} & {part.text for part in found.parts}
    assert found.missed == ("grief", "slapstick")


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("more horror", [("attribute", "horror", True)]),
        ("no horror", [("attribute", "horror", False)]),
        ("a good comedy", [("attribute", "comedy", True)]),
        ("not too much slapstick", [("words", "slapstick", False)]),
        ("I want to see slapstick", [("words", "slapstick", True)]),
        ("nothing grief and nothing slapstick, please", [("words", "grief", False), ("words", "slapstick", False)]),
        ("less war, more comedy", [("attribute", "war", False), ("attribute", "comedy", True)]),
        ("less war and more comedy", [("attribute", "war", False), ("attribute", "comedy", True)]),
        ("sci-fi but not war", [("attribute", "sci-fi", True), ("attribute", "war", False)]),
        (
            "robots and cowboys but no zombies",
            [("words", "robots", True), ("words", "cowboys", True), ("words", "zombies", False)],
        ),
        ("a haunted house without zombies", [("words", "haunted house", True), ("words", "zombies", False)]),
        ("slapstick rather than zombies", [("words", "slapstick", True), ("words", "zombies", False)]),
        ("slapstick but less grief", [("words", "slapstick", True), ("words", "grief", False)]),
        ("something with a robot", [("words", "robots", True)]),
        ("a zombie movie", [("words", "zombies", True)]),
        ("films with silly disguises", [("words", "silly disguises", True)]),
        ("something like The Crypt of Lisbon", [("title", "The Crypt of Lisbon (1952)", True)]),
        ("nothing like the crypt of lisbon", [("title", "The Crypt of Lisbon (1952)", False)]),
        (
            "like The Crypt of Lisbon but less horror",
            [("title", "The Crypt of Lisbon (1952)", True), ("attribute", "horror", False)],
        ),
        ("movies from the 1960s", [("number", "year 1960 to 1969", True)]),
        ("nothing from the 1960s", [("number", "year 1960 to 1969", False)]),
        ("comedy under 10", [("attribute", "comedy", True), ("number", "price under 10", True)]),
        ("hidden gems", [("popularity", "little known", True)]),
        ("not the usual blockbusters", [("popularity", "well known", False)]),
        ("something different from what I usually watch", [("habit", "what you usually choose", False)]),
    ],
)
def test_what_is_heard(hearing: HearingEncoder, request_text: str, expected: list[tuple[str, str, bool]]) -> None:
    assert heard(hearing, request_text) == expected


def test_each_attribute_is_first_or_last_as_asked(hearing: HearingEncoder, films: Catalogue) -> None:
    for name in films.attributes:
        members = kind(films, name)
        found = scores(hearing, hearing.encode([f"more {name.lower()}"])[0])
        assert found[members].min() > found[~members].max()
        assert torch.equal(scores(hearing, hearing.encode([f"no {name.lower()}"])[0]), -found)


@pytest.mark.parametrize(
    ("request_text", "word", "column"),
    [
        ("something with zombies", "zombies", "tags"),
        ("films about a zombie", "zombies", "tags"),
        ("a haunted house story", "haunted house", "tags"),
        ("submarines please", "submarine", "tags"),
        ("a popcorn evening", "popcorn", "said"),
        ("films with silly disguises", "silly", "said"),
    ],
)
def test_words_of_items_move_the_items_that_have_them(
    hearing: HearingEncoder, films: Catalogue, request_text: str, word: str, column: str
) -> None:
    assert lead(hearing, request_text, tagged(films, word, column)) > 0.6


def test_a_word_of_titles_moves_their_items(hearing: HearingEncoder, films: Catalogue) -> None:
    members = torch.tensor(["Avalon" in title for title in films.titles])
    assert lead(hearing, "something set in Avalon", members) > 0.6


@pytest.mark.parametrize(
    ("request_text", "name"),
    [
        ("spaceships and aliens", "Sci-Fi"),
        ("something with vampires and ghosts", "Horror"),
        ("something scary", "Horror"),
        ("something funny", "Comedy"),
        ("lawyers and judges", "Drama"),
    ],
)
def test_words_that_no_item_has_move_the_related_ones(
    hearing: HearingEncoder, films: Catalogue, request_text: str, name: str
) -> None:
    assert lead(hearing, request_text, kind(films, name)) > 0.4
    assert all("(near " in part.meaning and part.certainty < 1 for part in hearing.hear(request_text).parts)


def test_hidden_tags_are_still_heard(films: Catalogue, film_vectors: Tensor, shared_reader: RequestReader) -> None:
    """Without any tag "zombies" and "robots": static vectors know of horror and space."""
    tags = tuple(text.replace("zombies|", "").replace("zombies", "") for text in films.texts["tags"])
    poorer = replace(films, texts={**films.texts, "tags": tags})
    encoder = HearingEncoder(poorer, film_vectors, shared_reader)
    assert ("zombi",) not in encoder.terms.numbers
    assert lead(encoder, "films with zombies", kind(films, "Horror")) > 0.2


def test_a_title_means_the_item_and_its_like(hearing: HearingEncoder, films: Catalogue) -> None:
    for item in (2, 9, 31):
        found = scores(hearing, hearing.encode([f"something like {films.titles[item]}"])[0])
        alike = torch.arange(60) % 6 == item % 6
        assert found.argmax() == item
        assert found[alike].mean() > found[~alike].mean() + 0.2
        torch.testing.assert_close(
            scores(hearing, hearing.encode([f"nothing like {films.titles[item]}"])[0]), -found, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("decade", range(1950, 2000, 10))
def test_a_decade_is_exact(hearing: HearingEncoder, films: Catalogue, decade: int) -> None:
    years = films.numbers["year"]
    members = (years >= decade) & (years < decade + 10)
    found = scores(hearing, hearing.encode([f"movies from the {decade}s"])[0])
    assert set(found.topk(int(members.sum())).indices.tolist()) == set(members.nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("request_text", "column", "low", "high"),
    [("films before 1960", "year", 0, 1959), ("comedies under 10", "price", 0, 9.99), ("over 30", "price", 30.01, 99)],
)
def test_a_range_of_numbers_is_exact(
    hearing: HearingEncoder, films: Catalogue, request_text: str, column: str, low: float, high: float
) -> None:
    numbers = films.numbers[column]
    fact = next(part for part in hearing._heard([request_text])[0][0] if part.kind == "number")
    found = hearing.features @ fact.meaning
    members = (numbers >= low) & (numbers <= high)
    assert found[members].min() > found[~members].max()


def test_little_known_items_lie_above_well_known_ones(hearing: HearingEncoder, films: Catalogue) -> None:
    visits = films.numbers["popularity"]
    few, many = visits < visits.quantile(0.4), visits > visits.quantile(0.8)
    for request in ("hidden gems", "not the usual blockbusters"):
        found = scores(hearing, hearing.encode([request])[0])
        assert found[few].mean() > found[many].mean() + 0.3


def test_two_things_are_both_better_than_one(hearing: HearingEncoder, films: Catalogue) -> None:
    found = scores(hearing, hearing.encode(["comedy from the 1980s"])[0])
    years = films.numbers["year"]
    comedy, eighties = kind(films, "Comedy"), (years >= 1980) & (years < 1990)
    both, one = comedy & eighties, comedy ^ eighties
    assert found[both].min() > found[one].max()
    assert found[one].min() > found[~(comedy | eighties)].max()


@pytest.mark.parametrize("request_text", ["more zzxqv", "zzilpzzyzz xqvwk", "show me some zzxqv please"])
def test_gibberish_is_missed_and_moves_nothing(hearing: HearingEncoder, request_text: str) -> None:
    found, vector = hearing.listen(request_text)
    assert found.parts == ()
    assert set(" ".join(found.missed).split()) == set(request_text.split()) & {"zzxqv", "zzilpzzyzz", "xqvwk"}
    assert not vector.any()


def test_gibberish_beside_a_wish_is_missed_alone(hearing: HearingEncoder) -> None:
    found = hearing.hear("more horror with zzxqv")
    assert [part.meaning for part in found.parts] == ["horror"]
    assert found.missed == ("zzxqv",)
    assert torch.equal(hearing.encode(["more horror with zzxqv"]), hearing.encode(["more horror"]))


def test_sentences_that_ask_nothing_are_zeros(films: Catalogue, shared_reader: RequestReader) -> None:
    """Of a catalogue without numbers, because "anything new?" is no nothing where there are years."""
    encoder = HearingEncoder(replace(films, numbers={}), None, shared_reader)
    zeros = ~encoder.encode(TRAIN_TEMPLATES["none"][::3]).any(1)
    assert float(zeros.float().mean()) >= 0.98


@pytest.mark.parametrize(
    "request_text", ["", "  ", "?!", "surprise me", "hello there", "🎉🎉", "more horror and no horror"]
)
def test_nothing_asked_is_zeros(hearing: HearingEncoder, request_text: str) -> None:
    found, vector = hearing.listen(request_text)
    assert (found.parts, found.missed) == ((), ())
    assert str(found) == "nothing understood"
    assert not vector.any()
    assert torch.equal(hearing.encode([request_text])[0], vector)


def test_contradictions_cancel_and_leave_the_rest(hearing: HearingEncoder) -> None:
    assert heard(hearing, "more horror, no horror, more comedy") == [("attribute", "comedy", True)]


def test_no_texts_are_no_rows(hearing: HearingEncoder) -> None:
    assert hearing.encode([]).shape == (0, hearing.dim)
    assert hearing.dim == 2 * hearing.features.shape[1]
    assert hearing.sides == {"wanted": hearing.features.shape[1], "unwanted": hearing.features.shape[1]}


def test_a_batch_is_its_texts(hearing: HearingEncoder, films: Catalogue, film_vectors: Tensor) -> None:
    texts = [
        *(f"{start} {name.lower()}" for start in ("more", "no") for name in films.attributes),
        *("something with robots", "like The Crypt of Lisbon", "from the 1960s", "surprise me", "spaceships", "", "x"),
    ]
    together = hearing.encode(texts)
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat([hearing.encode([text]) for text in texts]))
    assert torch.equal(together, torch.stack([hearing.listen(text)[1] for text in texts]))
    other = HearingEncoder(films, film_vectors)  # made alike, and asked one by one
    assert torch.equal(torch.cat([other.encode([text]) for text in reversed(texts)]).flip(0), together)
    assert torch.equal(other.features, hearing.features)


def test_threads_do_not_disturb_each_other(hearing: HearingEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramer_peft.recsys.requests.hearing._KEPT", 2)  # so that all forget all the time
    texts = ["more horror", "something with robots", "spaceships", "from the 1960s", "no zombies", "less war"]
    expected = hearing.encode(texts)
    hearing._kept.clear()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: hearing.encode(texts), range(12)):
            assert torch.equal(found, expected)
    assert len(hearing._kept) <= 2


class TestConversations:
    def test_what_was_asked_before_counts_half(self, hearing: HearingEncoder) -> None:
        found, vector = hearing.listen("less war", ["more comedy"])
        assert [(part.meaning, part.wanted, part.certainty) for part in found.parts] == [
            ("war", False, 1.0),
            ("comedy", True, 0.5),
        ]
        comedy, war = hearing.encode(["more comedy", "no war"]).view(2, 2, -1)
        torch.testing.assert_close(vector.view(2, -1), torch.stack([0.5 * comedy[0], war[1]]))

    def test_the_longer_ago_the_less(self, hearing: HearingEncoder) -> None:
        found = hearing.listen("from the 1960s", ["more comedy", "no war"])[0]
        certainty = {part.meaning: part.certainty for part in found.parts}
        assert certainty == {"year 1960 to 1969": 1.0, "war": 0.5, "comedy": 0.25}

    def test_a_later_request_takes_the_place_of_the_same_one(self, hearing: HearingEncoder) -> None:
        assert heard(hearing, "no comedy", "more comedy") == [("attribute", "comedy", False)]

    @pytest.mark.parametrize(("request_text", "wanted"), [("less of that", False), ("more of that", True)])
    def test_that_is_what_was_wanted_before(self, hearing: HearingEncoder, request_text: str, wanted: bool) -> None:
        assert heard(hearing, request_text) == []
        assert heard(hearing, request_text, "more comedy", "surprise me") == [("attribute", "comedy", wanted)]
        expected = hearing.encode(["more comedy" if wanted else "no comedy"])[0]
        found = hearing.listen(request_text, ["more comedy"])[1]
        assert torch.equal(found != 0, expected != 0)

    def test_that_leaves_what_was_unwanted(self, hearing: HearingEncoder) -> None:
        found = heard(hearing, "less of that", "comedy but no war")
        assert found == [("attribute", "comedy", False), ("attribute", "war", False)]

    def test_a_text_that_asks_nothing_keeps_what_was_asked(self, hearing: HearingEncoder) -> None:
        assert heard(hearing, "surprise me", "more comedy") == [("attribute", "comedy", True)]

    def test_nothing_before_changes_nothing(self, hearing: HearingEncoder) -> None:
        expected = hearing.listen("more comedy")
        for before in ([], [""], ["surprise me", "hello"]):
            found = hearing.listen("more comedy", before)
            assert found[0] == expected[0]
            assert torch.equal(found[1], expected[1])


class TestHabits:
    REQUEST = "something different from what I usually watch"

    def test_a_habit_needs_a_history(self, hearing: HearingEncoder) -> None:
        found, vector = hearing.listen(self.REQUEST)
        assert found.needs_history
        assert not vector.any()

    def test_it_is_what_the_history_is_like(self, hearing: HearingEncoder, films: Catalogue) -> None:
        horror = [item for item in range(60) if item % 6 == 2][:5]
        found = scores(hearing, hearing.listen(self.REQUEST, history=horror)[1])
        members = kind(films, "Horror")
        assert found[members].max() < found[~members].mean()
        usual = scores(hearing, hearing.listen("the usual stuff", history=horror)[1])
        assert usual[members].mean() > usual[~members].mean() + 0.4

    def test_only_the_last_items_count(self, hearing: HearingEncoder) -> None:
        long, short = list(range(60)), list(range(40, 60))
        assert torch.equal(*(hearing.listen(self.REQUEST, history=own)[1] for own in (long, short)))

    def test_a_habit_goes_beside_other_wishes(self, hearing: HearingEncoder, films: Catalogue) -> None:
        found, vector = hearing.listen("comedy, but not what I usually watch", history=[2, 8, 14])
        assert [(part.kind, part.wanted) for part in found.parts] == [("attribute", True), ("habit", False)]
        order = scores(hearing, vector)
        assert order[kind(films, "Comedy")].mean() > order.mean() > order[kind(films, "Horror")].mean()


class TestAddedItems:
    TEXTS = (
        *("more horror", "no war", "something with robots", "spaceships", "from the 1960s", "cheap films"),
        *("hidden gems", "recent movies", "like The Crypt of Lisbon", "films from the 80s", "under 10"),
    )

    def grown(self, films: Catalogue) -> Catalogue:
        """Items with extreme numbers, new tags and words, and no title that a request names."""
        flags = torch.tensor([[True] * 6, [False] * 6, [False, False, True, False, False, False]])
        new = Catalogue(
            ("n1", "n2", "n3"),
            ("Robots of Avalon", "Quite Another Tale", "Robots Go West"),
            films.attributes,
            flags,
            texts={"tags": ("robots|zombies|space", "spaceships", "")},
            numbers={"year": torch.tensor([2088.0, 1900, 1965]).double(), "price": torch.tensor([0, 9e9, 7]).double()},
        )
        return films.with_items(new)

    def test_requests_and_features_keep_their_bits(
        self, films: Catalogue, film_vectors: Tensor, hearing: HearingEncoder
    ) -> None:
        grown = self.grown(films)
        vectors = torch.cat([film_vectors, film_vectors[[2, 3, 5]] + 0.1])
        for made in (
            HearingEncoder(grown, vectors, hearing.reader),
            HearingEncoder(grown, vectors, hearing.reader, vectors=hearing.vectors),
        ):
            assert torch.equal(made.features[:60], hearing.features)
            assert torch.equal(made.encode(self.TEXTS), hearing.encode(self.TEXTS))
            assert torch.equal(made.vectors, hearing.vectors)
            history = [1, 2, 3]
            assert torch.equal(*(one.listen("my usual stuff", history=history)[1] for one in (made, hearing)))

    def test_they_are_met_by_what_they_are(self, films: Catalogue, film_vectors: Tensor) -> None:
        made = HearingEncoder(self.grown(films), torch.cat([film_vectors, torch.zeros(3, 8)]))
        robots = scores(made, made.encode(["something with robots"])[0])[60:]
        assert robots[0] > robots[1]
        sixties = scores(made, made.encode(["from the 1960s"])[0])[60:]
        assert sixties.argmax() == 2


def test_another_encoder_of_words(films: Catalogue, film_vectors: Tensor, shared_reader: RequestReader) -> None:
    words = HashingEncoder(dim=32)
    encoder = HearingEncoder(films, film_vectors, shared_reader, words, {"dim": 32})
    assert encoder.vectors.shape == (len(encoder.terms.names), 32)
    assert lead(encoder, "something with zombies", tagged(films, "zombies")) > 0.5
    assert lead(encoder, "more horror", kind(films, "Horror")) > 0.5


def test_vectors_of_another_catalogue_are_refused(
    films: Catalogue, film_vectors: Tensor, hearing: HearingEncoder
) -> None:
    with pytest.raises(DataError, match=r"vectors: found 3, expected one for each of the \d+ terms"):
        HearingEncoder(films, film_vectors, hearing.reader, vectors=hearing.vectors[:3])
    with pytest.raises(DataError, match="one finite row for each of the 60 items"):
        HearingEncoder(films, film_vectors[:59], hearing.reader)


def test_poor_catalogues_can_be_asked(shared_reader: RequestReader) -> None:
    flags = torch.zeros(2, 1, dtype=torch.bool)
    for titles, attributes, own in (
        (("1", "2"), ("Horror",), flags),
        (("", ""), (), flags[:, :0]),
        (("Tin", "Tin"), ("Horror",), ~flags),
        (("Tin", "Cup"), ("Horror",), torch.tensor([[True], [False]])),
    ):
        encoder = HearingEncoder(Catalogue(("a", "b"), titles, attributes, own), torch.randn(2, 3), shared_reader)
        vectors = encoder.encode(["more horror", "hello", "something with spaceships", "like Tin"])
        assert bool(torch.isfinite(vectors).all())
        assert not vectors[1].any()


@settings(max_examples=60)
@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=2), st.lists(st.integers(0, 59), max_size=3))
@example("\0", ["\0"], [])
@example("🧟‍♀️ zombies 🧟", ["ｆｕｌｌ　ｗｉｄｔｈ"], [0])
@example("more horror " * 2000, [], [])
@example("a" * 20_000, [], [])
@example("under " + "9" * 400, ["before 1e999"], [])
@example("(((((\"'", ['like ""', "like ("], [])
@example("- - -", ["’", "'s"], [])
@example("ﷺ ﬁ Ⅷ ½ ²", ["from the ½0s"], [])
def test_any_text_is_read(hearing: HearingEncoder, text: str, before: list[str], history: list[int]) -> None:
    found, vector = hearing.listen(text, before, history)
    assert vector.shape == (hearing.dim,)
    assert bool(torch.isfinite(vector).all())
    assert isinstance(str(found), str)
    assert all(0 < part.certainty <= 1 for part in found.parts)
    assert torch.equal(hearing.encode([text, text]), hearing.encode([text]).expand(2, -1))


_PIECES = (
    "more",
    "no",
    "less",
    "horror",
    "zombies",
    "robots",
    ",",
    "but",
    "not",
    "like",
    "the crypt of lisbon",
    "1960s",
)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*_PIECES, "from the", "under 10", "and", "zzxqv", "that", "cheap"]), max_size=9))
def test_any_words_in_any_order_are_read(hearing: HearingEncoder, words: list[str]) -> None:
    found, vector = hearing.listen(" ".join(words))
    assert bool(torch.isfinite(vector).all())
    assert vector.any() == any(part.kind != "habit" for part in found.parts)
    sides = [{part.meaning for part in found.parts if part.wanted is side} for side in (True, False)]
    assert not sides[0] & sides[1]
    assert float(vector.view(2, -1).norm(dim=1).max()) < 100


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("western films from before 1980", [("western", True), ("year before 1980", True)]),
        ("something from after 1990", [("year after 1990", True)]),
        ("nothing from before 1990", [("year before 1990", False)]),
        ("movies from space", [("space", True)]),
        ("keep robots away from me", [("robots", False)]),
        ("a change from horror", [("horror", False)]),
    ],
)
def test_from_asks_for_what_follows_a_thing(
    hearing: HearingEncoder, request_text: str, expected: list[tuple[str, bool]]
) -> None:
    assert [(meaning, wanted) for _, meaning, wanted in heard(hearing, request_text)] == expected


def test_words_that_announce_a_title_are_not_missed(hearing: HearingEncoder) -> None:
    assert hearing.hear("similar to The Crypt of Lisbon").missed == ()


@pytest.mark.parametrize("request_text", ["something like The Crypt of Lisbon but with robots", "horror but robots"])
def test_but_alone_denies_nothing(hearing: HearingEncoder, request_text: str) -> None:
    assert ("words", "robots", True) in heard(hearing, request_text)


def test_but_not_denies(hearing: HearingEncoder) -> None:
    assert ("words", "robots", False) in heard(hearing, "horror but not robots")


def test_a_word_without_end_is_cut(hearing: HearingEncoder) -> None:
    assert max(map(len, hearing.reader.read(["more " + "a" * 60_000])[0].words)) <= 100
    assert hearing.hear("more horror, " + "a" * 60_000).parts[0].meaning == "horror"


def test_a_word_and_an_attribute_may_be_a_kind_of_their_own(
    films: Catalogue, film_vectors: Tensor, shared_reader: RequestReader
) -> None:
    tags = tuple("romantic comedy" if item < 12 else "" for item in range(len(films)))
    encoder = HearingEncoder(replace(films, texts={"tags": tuple(f"{t}|" for t in tags)}), film_vectors, shared_reader)
    found = heard(encoder, "a romantic comedy")
    assert found == [("words", "romantic comedy", True), ("attribute", "comedy", True)]
    assert ("words", "romantic comedy", False) in heard(encoder, "no romantic comedy")


@pytest.mark.parametrize("wording", ["something {}", "show me something more {}", "not too {}", "less {}", "{} please"])
@pytest.mark.parametrize("word", ["spooky", "wistful", "slapstick", "lavish"])
def test_a_word_is_heard_by_its_place(hearing: HearingEncoder, wording: str, word: str) -> None:
    ((_, meaning, wanted),) = heard(hearing, wording.format(word))
    assert meaning.startswith(word)
    assert wanted is not wording.startswith(("not", "less"))


@pytest.mark.parametrize(
    "request_text",
    [
        "something good",
        "nothing specific",
        "something worthwhile",
        "that was very helpful",
        "a nice one",
        "it is too loud",
    ],
)
def test_praise_and_talk_ask_for_nothing(hearing: HearingEncoder, request_text: str) -> None:
    assert heard(hearing, request_text) == []


@pytest.mark.parametrize("request_text", ["no zombies", "no zombies please", "not zombies", "no, zombies not"])
def test_a_plain_refusal_is_no_wish(hearing: HearingEncoder, request_text: str) -> None:
    assert heard(hearing, request_text) == [("words", "zombies", False)]


@pytest.mark.parametrize(
    "request_text", ["light comedy", "a light comedy", "something similar to comedy", "edgy comedy"]
)
def test_a_description_leaves_the_attribute_wanted(hearing: HearingEncoder, request_text: str) -> None:
    assert ("attribute", "comedy", True) in heard(hearing, request_text)
    assert heard(hearing, "go light on the comedy") == [("attribute", "comedy", False)]


def test_words_beside_a_name_of_items_are_what_is_asked(hearing: HearingEncoder) -> None:
    ((_, meaning, wanted),) = heard(hearing, "a wistful movie")
    assert meaning.startswith("wistful")
    assert wanted
    assert heard(hearing, "a good movie") == []


def test_a_number_that_most_items_have_does_not_drown_an_attribute(hearing: HearingEncoder, films: Catalogue) -> None:
    price = films.numbers["price"]
    limit = float(price[~price.isnan()].quantile(0.8))
    members = kind(films, "Comedy")
    found = scores(hearing, hearing.encode([f"comedy under {limit:.0f}"])[0])
    both = members & (price < limit)
    assert found[both].mean() > found[members & ~both].mean() > found[~members & (price < limit)].mean() - 0.2
    first = found.topk(int(both.sum())).indices
    assert float(both[first].float().mean()) >= 0.8


def test_cheap_is_meant_among_what_is_asked_for(hearing: HearingEncoder, films: Catalogue) -> None:
    price, members = films.numbers["price"], kind(films, "Comedy")
    dear = replace(films, numbers={**films.numbers, "price": torch.where(members, price + 1000, price)})
    encoder = HearingEncoder(dear, None, hearing.reader)
    (number, attribute) = encoder.hear("a cheap comedy").parts
    assert attribute.meaning == "comedy"
    assert number.meaning.startswith("price at most 10")
    assert number.meaning.endswith(" among comedy")
    assert "among" not in encoder.hear("something cheap").parts[0].meaning
    found = scores(encoder, encoder.encode(["a cheap comedy"])[0])
    cheapest = dear.numbers["price"][members].sort().values[: int(members.sum()) // 5 + 1]
    assert dear.numbers["price"][found.topk(3).indices].max() <= cheapest[-1]
    assert torch.equal(encoder.encode(["a cheap comedy"])[0], encoder.encode(["comedy", "a cheap comedy"])[1])


def test_names_of_several_words_are_heard_beside_an_attribute(hearing: HearingEncoder) -> None:
    assert ("words", "haunted house", True) in heard(hearing, "a movie with a haunted house, not a comedy")
    assert heard(hearing, "comedy, the sillier the better")[0] == ("attribute", "comedy", True)
