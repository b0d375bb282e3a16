from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.meanings import Meanings
from cramer_peft.recsys.requests.number_steps import steps_of
from cramer_peft.recsys.requests.terms import Terms, read_terms

pytest.importorskip("snowballstemmer")
WORDS = 48  # width of the made-up words' vectors


def vectors_of(terms: Terms) -> Tensor:
    """A made-up vector of each term."""
    return torch.randn(len(terms.names), WORDS, generator=torch.Generator().manual_seed(0))


def make(catalogue: Catalogue, embeddings: Tensor | None, described: int | None = None) -> Meanings:
    count = described or len(catalogue)
    terms = read_terms(catalogue, count)
    steps = steps_of(catalogue.numbers, len(catalogue), count)
    return Meanings(terms, vectors_of(terms), catalogue.item_attributes, embeddings, steps, count)


@pytest.fixture(scope="module")
def meanings(films: Catalogue, film_vectors: Tensor) -> Meanings:
    return make(films, film_vectors)


def scores(meanings: Meanings, meaning: Tensor) -> Tensor:
    return meanings.features @ meaning


def test_members_of_a_set_lie_one_above_the_others(meanings: Meanings, films: Catalogue) -> None:
    for members in (films.item_attributes[:, 2], films.numbers["year"] < 1960, torch.arange(60) < 2):
        found = scores(meanings, meanings.of_sets(members[None].float())[0])
        assert found[members].min() > found[~members].max()
        assert float(found[members].mean() - found.mean()) == pytest.approx(1, abs=0.05)


def test_items_that_are_less_members_lie_lower(meanings: Meanings, films: Catalogue) -> None:
    members = films.item_attributes[:, 2].float() + 0.4 * films.item_attributes[:, 4].float()
    found = scores(meanings, meanings.of_sets(members[None])[0])
    full, half, none = (found[members == value].mean() for value in (1.0, 0.4, 0.0))
    assert full > half + 0.1
    assert half > none + 0.1


def test_each_set_has_its_own_meaning(meanings: Meanings, films: Catalogue) -> None:
    sets = films.item_attributes.T.float()
    together = meanings.of_sets(sets)
    assert together.shape == (6, meanings.width)
    for own, row in zip(sets, together, strict=True):
        torch.testing.assert_close(meanings.of_sets(own[None])[0], row, rtol=1e-4, atol=1e-5)


def test_a_set_of_nothing_means_nothing(meanings: Meanings) -> None:
    assert torch.equal(meanings.of_sets(torch.zeros(1, 60)), torch.zeros(1, meanings.width))


def test_a_term_means_the_items_that_have_it(meanings: Meanings, films: Catalogue) -> None:
    terms = read_terms(films, 60)
    for number, name in enumerate(terms.names):
        members = torch.zeros(60, dtype=torch.bool)
        members[terms.items[terms.columns == number]] = True
        found = scores(meanings, meanings.of_terms[number])
        assert found[members].mean() > found[~members].mean() + 0.5, name


def test_words_that_no_item_has_mean_what_near_ones_do(meanings: Meanings, films: Catalogue) -> None:
    terms = read_terms(films, 60)
    vectors = vectors_of(terms)
    for name, kind in (("zombies", "Horror"), ("cowboys", "Western"), ("robots", "Sci-Fi")):
        place = terms.names.index(name)
        noise = torch.randn(WORDS, generator=torch.Generator().manual_seed(place))
        near = vectors[place] + 0.3 * noise
        found = scores(meanings, meanings.of_open(near[None])[0])
        members = films.item_attributes[:, films.attributes.index(kind)]
        assert found[members].mean() > found[~members].mean() + 0.2, name


def test_an_open_word_moves_as_far_as_a_named_one(meanings: Meanings) -> None:
    vectors = torch.randn(20, WORDS, generator=torch.Generator().manual_seed(1))
    centred = (meanings.features - meanings.features.mean(0)) @ meanings.of_open(vectors).T
    torch.testing.assert_close(centred.topk(10, dim=0).values.mean(0), torch.ones(20))


def test_an_item_is_like_others_of_its_kind_and_most_like_itself(meanings: Meanings) -> None:
    for item in range(60):
        near = meanings.like(item)
        assert near.argmax() == item
        assert float(near[item]) == pytest.approx(1)
        assert bool(((near >= 0) & (near <= 1 + 1e-6)).all())
        kind = torch.arange(60) % 6 == item % 6
        assert near[kind].mean() > near[~kind].mean() + 0.2


def test_prices_and_years_make_nothing_alike(films: Catalogue, film_vectors: Tensor, meanings: Meanings) -> None:
    others = Catalogue(films.item_ids, films.titles, films.attributes, films.item_attributes, texts=films.texts)
    torch.testing.assert_close(make(others, film_vectors).like(7), meanings.like(7))


def test_features_are_wide_enough_for_words_and_none_is_lost(meanings: Meanings, films: Catalogue) -> None:
    steps = sum(len(column.unique()) for name, column in films.numbers.items() if name != "popularity") + 16
    assert meanings.features.shape == (60, 6 + 32 + WORDS + 8 + steps)
    assert meanings.features.dtype == torch.float32
    assert bool(torch.isfinite(meanings.features).all())
    assert make(films, None).width == meanings.width - 8


def test_a_range_of_years_is_exact(meanings: Meanings, films: Catalogue) -> None:
    years = films.numbers["year"]
    for first in range(1950, 2000, 10):
        members = (years >= first) & (years < first + 10)
        found = scores(meanings, meanings.of_sets(members[None].float())[0])
        assert bool(members[found.topk(int(members.sum())).indices].all())


def test_the_others_keep_their_bits_when_items_are_added(films: Catalogue, film_vectors: Tensor) -> None:
    for known in (59, 43, 24):
        old = _cut(films, known)
        before, after = make(old, film_vectors[:known]), make(films, film_vectors, described=known)
        assert torch.equal(after.features[:known], before.features)
        assert torch.equal(after.of_terms, before.of_terms)
        vectors = torch.randn(3, WORDS, generator=torch.Generator().manual_seed(known))
        assert torch.equal(after.of_open(vectors), before.of_open(vectors))
        members = torch.rand(2, 60, generator=torch.Generator().manual_seed(known))
        assert torch.equal(after.of_sets(members), before.of_sets(members[:, :known]))
        new = after.features[known:]
        assert bool(torch.isfinite(new).all())
        assert bool((functional.cosine_similarity(new, after.features[:known].mean(0)[None]) < 0.99).all())


def _cut(catalogue: Catalogue, count: int) -> Catalogue:
    return Catalogue(
        catalogue.item_ids[:count],
        catalogue.titles[:count],
        catalogue.attributes,
        catalogue.item_attributes[:count],
        texts={name: column[:count] for name, column in catalogue.texts.items()},
        numbers={name: column[:count] for name, column in catalogue.numbers.items()},
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda own: (own, torch.zeros(60, 8)),
        lambda own: (_cut(own, 1), None),
        lambda own: (_cut(own, 1), torch.ones(1, 8)),
        lambda own: (_cut(own, 2), torch.full((2, 8), 1e20)),
        lambda own: (Catalogue(("a", "b"), ("1", "2"), (), torch.zeros(2, 0, dtype=torch.bool)), None),
        lambda own: (Catalogue(("a", "b"), ("1", "2"), ("Horror",), torch.zeros(2, 1, dtype=torch.bool)), None),
        lambda own: (Catalogue(("a", "b"), ("Tin", "Tin"), (), torch.zeros(2, 0, dtype=torch.bool)), torch.eye(2)),
    ],
    ids=["no embeddings", "one item", "one item at all", "huge", "nothing known", "no members", "embeddings alone"],
)
def test_poor_catalogues_have_finite_meanings(
    films: Catalogue, change: Callable[[Catalogue], tuple[Catalogue, Tensor | None]]
) -> None:
    catalogue, embeddings = change(films)
    made = make(catalogue, embeddings)
    members = torch.zeros(2, len(catalogue))
    members[0, 0] = 1
    for found in (made.features, made.of_terms, made.of_sets(members), made.of_open(torch.randn(2, WORDS))):
        assert bool(torch.isfinite(found).all())
    assert float(made.like(0)[0]) == pytest.approx(1)


@settings(max_examples=15)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 4), st.integers(0, 3), st.integers(0, 2**20))
def test_any_catalogue_has_finite_meanings(items: int, attributes: int, width: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    flags = torch.rand(items, attributes, generator=generator) < 0.3
    numbers = torch.randint(0, 4, (columns, items), generator=generator).double()
    numbers[numbers == 3] = torch.nan
    catalogue = Catalogue(
        tuple(map(str, range(items))),
        tuple(f"Tale {number % 3} {'abc'[number % 3] * 4}" for number in range(items)),
        tuple(f"kind{number}" for number in range(attributes)),
        flags,
        numbers={f"n{place}": column for place, column in enumerate(numbers)},
    )
    embeddings = torch.randn(items, width, generator=generator) if width else None
    made = make(catalogue, embeddings)
    members = torch.rand(3, items, generator=generator)
    for found in (made.features, made.of_terms, made.of_sets(members), made.of_open(torch.randn(2, WORDS))):
        assert bool(torch.isfinite(found).all())


def test_the_encoder_scales_alike(hearing: HearingEncoder, films: Catalogue) -> None:
    assert hearing.features is hearing.meanings.features
    found = hearing.meanings.of_sets(films.item_attributes.T.float())
    concept = hearing.concepts([(films.item_attributes[:, 1], films.item_attributes[:, 2])])[0]
    torch.testing.assert_close(concept, torch.cat([found[1], found[2]]), rtol=1e-4, atol=1e-5)
