import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator, concept_match

ITEMS = 60
seeds = st.integers(0, 2**32)


def make_generator(seed: int, items: int = ITEMS, own: int = 8) -> ConceptGenerator:
    texts, embeddings = torch.randn(items, 72, generator=torch.Generator().manual_seed(0)).split([64, 8], 1)
    given = embeddings if own else None
    return ConceptGenerator(texts, given, random.Random(seed), torch.Generator().manual_seed(seed))


def sets_of(concept: Concept) -> list[Tensor]:
    return [members for members in (concept.wanted, concept.unwanted) if members is not None]


@given(seeds, st.integers(1, 80), st.sampled_from([0, 8]))
def test_sets_are_never_empty(seed: int, items: int, own: int) -> None:
    made = make_generator(seed, items, own)
    for concept in (made() for _ in range(5)):
        assert sets_of(concept)
        for members in sets_of(concept):
            assert members.shape == (items,)
            assert members.dtype == torch.bool
            assert bool(members.any())


@given(seeds)
def test_sets_are_of_the_items_given(seed: int) -> None:
    among = torch.arange(0, ITEMS, 3)
    made = make_generator(seed)
    for members in (members for _ in range(5) for members in sets_of(made(among))):
        assert members.shape == (ITEMS,)
        assert bool(members.any())
        assert not set(members.nonzero()[:, 0].tolist()) - set(among.tolist())


def test_both_sides_are_drawn() -> None:
    made = make_generator(0)
    kinds = [(concept.wanted is not None, concept.unwanted is not None) for concept in (made() for _ in range(600))]
    assert kinds.count((True, False)) == pytest.approx(300, abs=50)
    assert kinds.count((False, True)) == pytest.approx(180, abs=45)
    assert kinds.count((True, True)) == pytest.approx(120, abs=40)


def test_sets_are_small_and_large_and_of_items_near_each_other() -> None:
    groups = torch.eye(6).repeat_interleave(50, 0)  # 300 items in six groups
    made = ConceptGenerator(groups, groups, random.Random(0), torch.Generator().manual_seed(0))
    found = [members for _ in range(100) for members in sets_of(made())]
    sizes = [int(members.sum()) for members in found]
    assert min(sizes) < 20
    assert 100 < max(sizes) <= 3 * 120
    small = [members for members in found if members.sum() <= 50]
    inside = torch.stack([members.view(6, 50).float().mean(1) for members in small])
    assert float((inside.amax(1) / inside.sum(1)).mean()) > 0.6  # by chance 1/6 and a little


@given(seeds)
def test_equal_states_draw_equal_sets(seed: int) -> None:
    first, again = make_generator(seed), make_generator(seed)
    torch.manual_seed(seed % 7)  # the global state does not matter
    for _ in range(3):
        one, other = first(), again()
        assert (one.wanted is None, one.unwanted is None) == (other.wanted is None, other.unwanted is None)
        assert all(map(torch.equal, sets_of(one), sets_of(other)))


def test_match_by_hand() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    found = concept_match([Concept(a, None), Concept(None, b), Concept(a, b)], 4)
    assert found.dtype == torch.float32
    assert found.tolist() == [[1, 1, 0, 0], [0, -1, -1, 0], [1, 0, -1, 0]]
    assert concept_match([], 4).shape == (0, 4)
