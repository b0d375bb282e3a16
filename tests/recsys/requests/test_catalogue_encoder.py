import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.encoders import CachedEncoder, HashingEncoder, WordLlamaEncoder
from cramer_peft.encoders.reader import WORD, Reading, RequestReader, Spans
from cramer_peft.errors import DataError, EncoderError
from cramer_peft.recsys.backbones import BACKBONES, SASRec, config_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import (
    TEXT_WIDTH,
    CatalogueEncoder,
    RequestPhrase,
    item_embeddings,
    lengths_by_first,
    named_by_first,
    text_encoder,
    without_cache,
)
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.request_encoders import DEFAULT_ENCODER, request_encoder

pytest.importorskip("wordllama")
KINDS = ("Comedy", "Film-Noir", "Horror", "Sci-Fi", "Western")
ITEMS, WIDTH = 30, 6
FEATURES = 2 * TEXT_WIDTH + WIDTH  # attributes, title, embedding


def make_catalogue(titles: list[str] | None = None) -> Catalogue:
    """30 items, each of one of five kinds in turn; the last has neither kind nor a word in its title."""
    flags = torch.zeros(ITEMS, len(KINDS), dtype=torch.bool)
    flags[torch.arange(ITEMS), torch.arange(ITEMS) % len(KINDS)] = True
    flags[-1] = False
    titles = [f"Tale {item}" for item in range(ITEMS - 1)] + ["7"] if titles is None else titles
    return Catalogue(tuple(map(str, range(ITEMS))), tuple(titles), KINDS, flags)


@pytest.fixture(scope="module")
def reader() -> RequestReader:
    return RequestReader()


@pytest.fixture(scope="module")
def embeddings() -> Tensor:
    return torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.fixture(scope="module")
def encoder(reader: RequestReader, embeddings: Tensor) -> CatalogueEncoder:
    return CatalogueEncoder(make_catalogue(), embeddings, reader)


def nearest(encoder: CatalogueEncoder, slot: Tensor, count: int = 4) -> set[int]:
    return set((encoder.features[:, :TEXT_WIDTH] @ slot).topk(count).indices.tolist())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("more horror", [RequestPhrase("horror", True, 1.0)]),
        ("no film noir, please", [RequestPhrase("film noir", False, 1.0)]),
        ("More SCI-FI without western", [RequestPhrase("sci-fi", True, 1.0), RequestPhrase("western", False, 1.0)]),
        ("surprise me", []),
        ("", []),
    ],
)
def test_attributes_are_found_by_name(encoder: CatalogueEncoder, text: str, expected: list[RequestPhrase]) -> None:
    assert encoder.understand(text) == expected


def test_a_word_that_is_no_attribute_weighs_by_its_nearness(encoder: CatalogueEncoder) -> None:
    (found,) = encoder.understand("more comedies")
    assert (found.text, found.wanted) == ("comedies", True)
    similarity = functional.cosine_similarity(*encoder.reader.vectors(["comedies", "comedy"]), dim=0)
    assert found.weight == pytest.approx(float(similarity), abs=1e-5)
    assert encoder.understand("more carburettors") == []  # near to nothing here


def test_names_are_matched_at_their_longest(encoder: CatalogueEncoder) -> None:
    flags = torch.ones(1, 2, dtype=torch.bool)
    made = CatalogueEncoder(Catalogue(("a",), ("A",), ("Horror", "Psychological Horror"), flags), None, encoder.reader)
    assert [part.text for part in made.understand("more psychological horror")] == ["psychological horror"]


def test_the_side_is_taken_from_the_words_of_the_name(
    encoder: CatalogueEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("x", "film", "noir", "horror")
    wanted, unwanted = torch.tensor([0.0, 0.2, 0.2, 0.02]), torch.tensor([0.0, 0.1, 0.6, 0.03])
    monkeypatch.setattr(encoder.reader, "read", lambda texts, names: [Reading(words, wanted, unwanted)] * len(texts))
    assert encoder.understand("whatever") == [RequestPhrase("film noir", False, 1.0)]  # the other is surely neither


def test_an_item_is_its_embedding_beside_its_text(encoder: CatalogueEncoder, embeddings: Tensor) -> None:
    assert encoder.features.shape == (ITEMS, FEATURES)
    assert encoder.dim == 2 * TEXT_WIDTH
    assert encoder.sides == {"wanted": TEXT_WIDTH, "unwanted": TEXT_WIDTH}  # compared with the attributes alone
    for part in encoder.features.split([TEXT_WIDTH, TEXT_WIDTH, WIDTH], 1):
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-5, rtol=0)
        assert float(part.norm(dim=1).mean()) == pytest.approx(1)
    assert not encoder.features.requires_grad
    titles = encoder.features[: ITEMS - 1, TEXT_WIDTH : 2 * TEXT_WIDTH]
    torch.testing.assert_close(titles, titles[:1].expand_as(titles))  # all say "tale", the last nothing
    attributes = encoder.features[:25, :TEXT_WIDTH].unflatten(0, (5, 5))
    torch.testing.assert_close(attributes, attributes[:1].expand_as(attributes))  # the five kinds in turn


def test_the_features_of_earlier_versions(encoder: CatalogueEncoder, embeddings: Tensor) -> None:
    made = CatalogueEncoder(make_catalogue(), embeddings, encoder.reader, whiten=False)
    assert (made.name, encoder.name) == ("catalogue", "catalogue-2")
    assert (made.sides, made.dim) == ({}, 2 * (WIDTH + TEXT_WIDTH))
    centred = embeddings - embeddings.mean(0)
    assert torch.equal(made.features[:, :WIDTH], centred / centred.norm(dim=-1).mean())
    kinds = ["comedy", "film noir", "horror", "sci-fi", "western"]
    vectors = {word: made._phrase_vector(word)[:TEXT_WIDTH] for word in [*kinds, "tale"]}
    places = [[kinds[item % 5], "tale"] for item in range(ITEMS - 1)]
    texts = torch.stack([torch.stack([vectors[word] for word in own]).mean(0) for own in places] + [torch.zeros(64)])
    centred = texts - texts.mean(0)
    assert torch.equal(made.features[:, WIDTH:], centred / centred.norm(dim=-1).mean())
    assert torch.equal(made.texts, made.features[:, WIDTH:])


def test_without_embeddings_there_is_the_text_alone(encoder: CatalogueEncoder) -> None:
    made = CatalogueEncoder(make_catalogue(), None, encoder.reader)
    torch.testing.assert_close(made.features, encoder.features[:, : 2 * TEXT_WIDTH])
    assert made.dim == encoder.dim == 2 * TEXT_WIDTH
    assert made.embeddings is None


def test_a_vector_is_the_middle_of_the_items_that_are_named(encoder: CatalogueEncoder) -> None:
    vectors = encoder.encode(["more horror", "no horror", "horror but no western", "no western"]).unflatten(1, (2, -1))
    zeros = torch.zeros(TEXT_WIDTH)
    horror = {item for item in range(ITEMS - 1) if item % 5 == 2}
    members = torch.tensor([item in horror for item in range(ITEMS)])
    expected = encoder.features[members, :TEXT_WIDTH].mean(0)
    assert float(functional.cosine_similarity(vectors[0, 0], expected, dim=0)) > 0.95
    assert torch.equal(vectors[0, 1], zeros)
    assert torch.equal(vectors[1], vectors[0].flip(0))  # the same place on the other side
    assert torch.equal(vectors[2], torch.stack([vectors[0, 0], vectors[3, 1]]))
    assert nearest(encoder, vectors[0, 0]) <= horror


def test_several_things_are_averaged_and_one_unsure_thing_is_small(encoder: CatalogueEncoder) -> None:
    one, other, both = encoder.encode(["more horror", "more western", "more horror and western"])
    torch.testing.assert_close(both, (one + other) / 2)
    (part,) = encoder.understand("more comedies")
    torch.testing.assert_close(
        encoder.encode(["more comedies"])[0, : encoder.dim // 2], part.weight * encoder._middle("comedies")
    )


def test_nothing_asked_is_zeros(encoder: CatalogueEncoder) -> None:
    assert torch.equal(encoder.encode(["surprise me", "", "more carburettors"]), torch.zeros(3, encoder.dim))
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_words_of_titles_are_found_too(reader: RequestReader, embeddings: Tensor) -> None:
    titles = [f"Tale {item}" for item in range(ITEMS)]
    titles[3] = "Zombie"
    made = CatalogueEncoder(make_catalogue(titles), embeddings, reader)
    middle = made._middle("zombie")
    assert nearest(made, middle, 5) <= set(range(3, ITEMS, 5))  # it stands for what the item with that title is


def test_a_concept_is_the_mean_of_its_items(encoder: CatalogueEncoder) -> None:
    first, second = torch.arange(ITEMS) < 4, torch.arange(ITEMS) >= 20
    zeros, sides = torch.zeros(TEXT_WIDTH), encoder.features[:, :TEXT_WIDTH]
    means = sides[:4].mean(0), sides[20:].mean(0)
    for wanted, unwanted, expected in (
        (first, None, (means[0], zeros)),
        (None, second, (zeros, means[1])),
        (first, second, means),
    ):
        torch.testing.assert_close(encoder.concepts([(wanted, unwanted)])[0], torch.cat(expected))


def test_no_two_texts_depend_on_each_other_in_threads(encoder: CatalogueEncoder) -> None:
    texts = [f"{start} {kind.lower()}" for start in ("more", "no") for kind in KINDS]
    expected = encoder.encode(texts)
    encoder._middles.clear()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.encode(texts), range(12)):
            torch.testing.assert_close(found, expected)


def test_a_word_alone_or_none_at_all_is_a_catalogue_too(reader: RequestReader) -> None:
    flags = torch.zeros(2, 1, dtype=torch.bool)
    made = CatalogueEncoder(Catalogue(("a", "b"), ("1", "2"), ("Horror",), flags), torch.randn(2, 3), reader)
    assert bool(torch.isfinite(made.features).all())
    assert bool(torch.isfinite(made.encode(["more horror", "hello"])).all())


@pytest.mark.parametrize("broken", [torch.zeros(ITEMS - 1, 3), torch.full((ITEMS, 3), torch.nan)])
def test_embeddings_are_of_the_items(reader: RequestReader, broken: Tensor) -> None:
    with pytest.raises(DataError, match=f"one finite row for each of the {ITEMS} items"):
        CatalogueEncoder(make_catalogue(), broken, reader)


def test_the_reader_is_told_where_attributes_are_named(
    encoder: CatalogueEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    read = encoder.reader.read

    def listen(texts: list[str], names: Spans) -> list[Reading]:
        told.extend(names(WORD.findall(text.lower())) for text in texts)
        return read(texts, names)

    monkeypatch.setattr(encoder.reader, "read", listen)
    encoder.encode(["no Horror, more film noir", "hello"])
    encoder.understand("horror")
    assert told == [[(1, 2), (4, 6)], [], [(0, 1)]]


def test_what_is_asked_for_and_against_comes_to_nothing(
    encoder: CatalogueEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("horror", "x", "horror", "film", "noir")
    wanted, unwanted = torch.tensor([0.9, 0.0, 0.0, 0.9, 0.9]), torch.tensor([0.0, 0.0, 0.9, 0.0, 0.0])
    monkeypatch.setattr(encoder.reader, "read", lambda texts, names: [Reading(words, wanted, unwanted)] * len(texts))
    assert encoder.understand("whatever") == [RequestPhrase("film noir", True, 1.0)]


@pytest.mark.parametrize("name", [None, DEFAULT_ENCODER])
def test_the_default_knows_the_catalogue(name: str | None, catalogue: Catalogue, sasrec: SASRec) -> None:
    made = request_encoder(name, catalogue, sasrec)
    assert isinstance(made, CachedEncoder)
    inner = without_cache(made)
    assert isinstance(inner, HearingEncoder)
    assert (made.name, DEFAULT_ENCODER) == ("catalogue-3", "catalogue")
    embeddings = sasrec.bert.embeddings.word_embeddings.weight[1:]
    expected = HearingEncoder(catalogue, embeddings, inner.reader, inner.words)
    assert torch.equal(inner.features, expected.features)
    assert isinstance(text_encoder(made), WordLlamaEncoder)


def test_others_go_by_their_names(catalogue: Catalogue, sasrec: SASRec) -> None:
    made = request_encoder("hashing", catalogue, sasrec, {"dim": 12})
    assert isinstance(without_cache(made), HashingEncoder)
    assert made.dim == 12
    assert text_encoder(made) is made
    with pytest.raises(EncoderError, match="unknown request encoder 'nonsense'"):
        request_encoder("nonsense", catalogue, sasrec)


def test_behind_the_caches_of_a_handle_too(catalogue: Catalogue, sasrec: SASRec) -> None:
    made = request_encoder(None, catalogue, sasrec)
    masks = inject_request_masks(sasrec, config_for(sasrec, RequestMaskConfig()), encoder=made)
    assert without_cache(masks.encoder()) is without_cache(made)
    assert isinstance(text_encoder(masks.encoder()), WordLlamaEncoder)
    assert masks.peft_config["default"].encoder == "catalogue-3"
    assert masks.peft_config["default"].request_dim == made.dim


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_embeddings_are_one_row_for_each_item(name: str, make_untrained: Callable[[str], Any]) -> None:
    found = item_embeddings(make_untrained(name))
    assert found is not None
    assert found.shape == (40, 16)
    assert torch.isfinite(found).all()


def test_a_row_is_that_of_its_item(sasrec: SASRec) -> None:
    found = item_embeddings(sasrec)
    assert found is not None
    assert not found.requires_grad
    assert torch.equal(found[7], sasrec.get_input_embeddings()(torch.tensor(8)))  # 0 is the padding


class Shapeless(nn.Module):
    num_items = 4

    def __init__(self, items: Any) -> None:
        super().__init__()
        self.items = items


@pytest.mark.parametrize("items", [None, nn.Identity(), nn.Embedding(4, 3), nn.Conv1d(9, 2, 3)])
def test_without_a_table_there_are_no_embeddings(items: Any) -> None:
    assert item_embeddings(Shapeless(items)) is None


def test_a_table_called_items_is_found(make_sasrec: Callable[..., SASRec]) -> None:
    table = nn.Embedding(6, 3)  # the padding, four items, a mask token
    found = item_embeddings(Shapeless(table))
    assert found is not None
    assert torch.equal(found, table.weight[1:5])


def test_names_longer_than_what_is_read_of_a_request_are_not_looked_for(reader: RequestReader) -> None:
    names = tuple(sorted(" ".join(["slow"] * length) for length in (1, 2, 256, 257, 3000)))
    catalogue = Catalogue(("1",), ("One",), names, torch.ones(1, len(names), dtype=torch.bool))
    encoder = CatalogueEncoder(catalogue, None, reader)
    assert encoder._lengths == {"slow": [256, 2, 1]}
    assert torch.isfinite(encoder.encode(["slow " * 300])).all()


def test_a_title_of_too_many_words_beside_many_items(reader: RequestReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramer_peft.recsys.requests.catalogue_encoder.MAX_CATALOGUE_CELLS", 10 * ITEMS)
    longest = " ".join("abcdefghijklm"[place] * 5 for place in range(13))
    with pytest.raises(DataError, match=r"titles: 'aaaaa bbbbb.* too many beside 30 items: expected at most 10 words"):
        CatalogueEncoder(make_catalogue([longest] + ["Tale"] * (ITEMS - 1)), None, reader)


def test_words_are_indexed_by_item(reader: RequestReader) -> None:
    flags = torch.tensor([[True, True], [False, True], [False, False], [False, False]])
    titles = ("Night of the Horror", "Western nights", "Night night", "7")
    made = CatalogueEncoder(Catalogue(tuple("abcd"), titles, ("Horror", "Western"), flags), None, reader)
    words = ["horror", "western", "night", "nights", ""]
    assert [sorted(set(row)) for row in made._places.tolist()] == [[0, 1, 2], [1, 3], [2], [4]]
    for number, word in enumerate(words):
        expected = made._phrase_vector(word) if word else torch.zeros(256)
        assert torch.equal(made._words[number], expected)
    assert made._weights.tolist() == pytest.approx([1.0, 1.0, 0.8, 0.8, 0.8])


def test_items_that_were_added_change_no_request_and_no_other_item(
    encoder: CatalogueEncoder, embeddings: Tensor
) -> None:
    flags = torch.tensor([[False, False, True], [True, False, False], [False, False, False]])
    ids, titles = ("x", "y", "z"), ("Carburettors of horror, a long title of many words", "Tale", "9")
    grown = make_catalogue().with_items(Catalogue(ids, titles, ("Comedy", "Film-Noir", "Horror"), flags))
    vectors = torch.cat([embeddings, torch.randn(3, WIDTH)])
    for whiten in (True, False):
        before = CatalogueEncoder(make_catalogue(), embeddings, encoder.reader, whiten)
        made = CatalogueEncoder(grown, vectors, encoder.reader, whiten)
        assert made.features.shape == (ITEMS + 3, before.features.shape[1])
        for name in ("features", "texts", "embeddings"):
            assert torch.equal(getattr(made, name)[:ITEMS], getattr(before, name))
        texts = ["more horror", "no comedies", "a long tale", "carburettors", ""]
        assert torch.equal(made.encode(texts), before.encode(texts))
        same = made.features[[ITEMS, 2], :TEXT_WIDTH]  # both are horror
        if whiten:
            torch.testing.assert_close(same[0], same[1])


def test_many_items_are_indexed_quickly(reader: RequestReader) -> None:
    items = 20_000
    flags = torch.arange(items)[:, None] % 5 == torch.arange(5)
    titles = tuple(f"Item number {item} {'abcdefgh'[item % 8] * (4 + item % 90)}" for item in range(items))
    catalogue = Catalogue(tuple(map(str, range(items))), titles, KINDS, flags)
    start = time.perf_counter()
    CatalogueEncoder(catalogue, torch.randn(items, WIDTH), reader)
    assert time.perf_counter() - start < 20  # 1 to 2 alone; one call a word or an item took a minute


def test_a_name_ends_with_the_text() -> None:
    names = {("war",): "war", ("war", "of", "roses"): "roses"}
    look = lambda own, _: names.get(own)  # noqa: E731
    words = ["the", "war", "of", "roses", "or", "war"]
    found = list(named_by_first(words, lengths_by_first(names), look))
    assert found == [(1, 4, "roses"), (5, 6, "war")]  # and not words that are not there
