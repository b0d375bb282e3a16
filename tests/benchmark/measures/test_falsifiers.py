import itertools
import math

import pytest
import torch
from benchmark.measures.falsifiers import (
    check_ceiling,
    check_identity,
    check_reported,
    check_shuffled,
    check_triple,
    is_possible,
    mrr_interval,
    oracle_filter,
    shuffled,
)
from benchmark.measures.tracks import BenchmarkTracks
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft import RequestMaskModel
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.metrics import best_share, expected_share, hit_rate, mrr, ndcg, target_ranks
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, truthful_track
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import match_scores
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES

K = 5


@pytest.fixture
def truthful(users: EvaluationUsers) -> Track:
    catalogue = users.catalogue
    return truthful_track(catalogue.item_attributes[users.targets], catalogue.attributes, TEST_TEMPLATES, 0)


def noise(users: EvaluationUsers) -> torch.Tensor:
    return torch.rand(users.seen.shape, generator=torch.Generator().manual_seed(1))


def follow(users: EvaluationUsers, track: Track, frozen: torch.Tensor, meanings: Track) -> torch.Tensor:
    """A reader that knows what each sentence of ``meanings`` means, and puts what fits the text in front."""
    known = {request.text: request for request in meanings.requests}
    read = [known[request.text] for request in track.requests]
    return frozen + 10 * match_scores(read, users.catalogue.attributes, users.catalogue.item_attributes)


def gains(users: EvaluationUsers, scores: torch.Tensor) -> torch.Tensor:
    return ndcg(target_ranks(scores.masked_fill(users.seen, -torch.inf), users.targets), 10)


def test_shuffled_hands_every_sentence_to_another_user() -> None:
    names = ("a", "b", "c")
    track = BlindTracks(names, TEST_TEMPLATES, 0).counterfactual_for(12)
    numbered = tuple(
        AttributeRequest(f"{user}: {r.text}", r.wanted, r.unwanted, r.family) for user, r in enumerate(track.requests)
    )
    counts = torch.tensor([user % 4 > 0 for user in range(12)])
    mixed = shuffled(Track("x", numbered, counts), seed=0)
    assert mixed.name == "x, shuffled"
    for user, (old, new) in enumerate(zip(numbered, mixed.requests, strict=True)):
        assert (new.wanted, new.unwanted) == (old.wanted, old.unwanted)
        assert (new.text == old.text) == (not counts[user])
    assert sorted(r.text for r in mixed.requests) == sorted(r.text for r in numbered)
    assert shuffled(Track("x", numbered, counts), seed=0).requests == mixed.requests
    assert shuffled(Track("x", numbered, counts), seed=1).requests != mixed.requests
    with pytest.raises(DataError, match=r"track 'x': 1 user\(s\) count"):
        shuffled(Track("x", numbered[:2], torch.tensor([True, False])), seed=0)


def test_shuffled_requests_erase_the_gain_of_one_that_reads(users: EvaluationUsers, truthful: Track) -> None:
    frozen = noise(users)
    own = gains(users, follow(users, truthful, frozen, truthful))
    other = gains(users, follow(users, shuffled(truthful, 0), frozen, truthful))
    check = check_shuffled(own, other, gains(users, frozen))
    assert check.holds, check.detail
    assert "own - shuffled" in check.detail


def test_one_that_gains_without_reading_is_caught(users: EvaluationUsers) -> None:
    frozen = noise(users)
    cheat = gains(users, frozen.scatter(1, users.targets[:, None], 2.0))  # whatever it is asked
    assert not check_shuffled(cheat, cheat, gains(users, frozen)).holds
    half = cheat * torch.linspace(0, 1, len(cheat))  # gains by reading too, but not only
    assert not check_shuffled(cheat, half, gains(users, frozen)).holds
    nothing = gains(users, frozen)
    assert not check_shuffled(nothing, nothing, nothing).holds


@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_oracle_filter_is_never_beaten(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frozen, other = torch.randint(0, 4, (2, 5, 9), generator=generator).float()
    seen, fits = torch.rand(2, 5, 9, generator=generator) < 0.4
    seen[:, :4] = False
    best = best_share(fits, seen, k)
    reached = expected_share(oracle_filter(frozen, fits), seen, fits, k)
    torch.testing.assert_close(reached, best)
    assert check_ceiling(expected_share(other, seen, fits, k), best).holds
    assert check_ceiling(reached, best).holds


def test_a_satisfaction_above_the_ceiling_is_caught() -> None:
    best = torch.tensor([0.5, 1.0])
    assert check_ceiling(torch.tensor([0.6, 1.0]), best).detail == "1 of 2 users above it"
    assert not check_ceiling(torch.tensor([0.6, 1.0]), best).holds
    assert not check_ceiling(torch.tensor([float("nan"), 1.0]), best).holds


def test_the_oracle_filter_keeps_the_models_order_and_its_ties() -> None:
    scores = torch.tensor([[0.1, 1e30, -1e30, 0.1, 7.0, -torch.inf]])
    fits = torch.tensor([[True, False, True, True, False, False]])
    found = oracle_filter(scores, fits)
    assert found[0].argsort(descending=True, stable=True).tolist() == [0, 3, 2, 1, 4, 5]
    assert found[0, 0] == found[0, 3]
    assert bool(torch.isfinite(found).all())


def test_strength_zero_and_blank_give_the_frozen_rows(
    masks: RequestMaskModel, users: EvaluationUsers, catalogue: Catalogue
) -> None:
    masks.eval()
    sweep = BenchmarkTracks(catalogue.attributes, TEST_TEMPLATES, 0).strength_sweep(len(users.item_ids), (0.0, 1.0))
    with torch.no_grad():
        frozen = masks(users.item_ids, request=None)
        scores = [
            masks(users.item_ids, request=[request.text for request in track.requests], request_strength=strength)
            for strength, track in sweep
        ]
        blank = masks(users.item_ids, request=[" "] * len(users.item_ids))
    assert check_identity(scores[0], frozen).holds
    assert check_identity(blank, frozen).holds
    moved = check_identity(scores[1], frozen)
    assert not moved.holds
    assert moved.detail == "30 of 30 rows differ"


def test_identity_is_exact() -> None:
    frozen = torch.ones(3, 2)
    nearly = frozen.clone()
    nearly[1, 0] += 1.2e-7
    assert check_identity(nearly, frozen).detail == "1 of 3 rows differ"
    assert not check_identity(nearly, frozen).holds
    assert not check_identity(torch.full((3, 2), torch.nan), torch.full((3, 2), torch.nan)).holds
    assert not check_identity(frozen[:2], frozen).holds


@given(st.lists(st.integers(2, 80).map(lambda doubled: doubled / 2), min_size=1, max_size=30), st.integers(1, 20))
def test_triples_of_ranks_hold(ranks: list[float], k: int) -> None:
    check = check_triple(torch.tensor(ranks), k)
    assert check.holds, check.detail


def test_a_triple_that_cannot_be_is_caught() -> None:
    assert check_reported((0.5, 0.4, 0.37)).holds
    assert not check_reported((0.5, 0.4, 0.2)).holds
    assert not check_reported((0.5, 0.4, 0.45)).holds


# --- (HR, NDCG, MRR) triples that rankings can have


def means_of(ranks: list[float], k: int) -> tuple[float, float, float]:
    tensor = torch.tensor(ranks, dtype=torch.float64)
    return tuple(float(metric(tensor, k).double().mean()) for metric in (hit_rate, ndcg, mrr))  # type: ignore[return-value]


@given(st.lists(st.integers(2, 80).map(lambda doubled: doubled / 2), min_size=1, max_size=20), st.integers(1, 30))
def test_triples_of_rankings_are_possible(ranks: list[float], k: int) -> None:
    hr, gain, reciprocal = means_of(ranks, k)
    assert is_possible(hr, gain, reciprocal, k, ties=True)
    whole = means_of([float(math.ceil(rank)) for rank in ranks], k)
    assert is_possible(*whole, k)
    assert is_possible(*(round(value, 3) for value in whole), k, tolerance=0.00051)
    if any(rank <= k for rank in ranks):
        low, high = mrr_interval(hr, gain, k, ties=True)
        assert low - 1e-6 <= reciprocal <= high + 1e-6


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 30))
def test_both_ends_are_reached_and_nothing_lies_beyond(ranks: list[int], k: int) -> None:
    hr, gain, _ = means_of([float(rank) for rank in ranks], k)
    low, high = mrr_interval(hr, gain, k)
    assert low <= high + 1e-9
    for end, step in ((low, -1e-3), (high, 1e-3)):
        assert is_possible(hr, gain, end, k)
        assert not is_possible(hr, gain, end + step, k)
        assert is_possible(hr, gain, end + step, k, tolerance=1e-3)
    assert not is_possible(hr, hr + 0.01, hr, k)
    assert not is_possible(hr, gain - hr - 0.01, 0.0, k)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_agrees_with_all_mixtures_of_four_ranks(k: int, ties: bool) -> None:
    """A mean of rankings is a mixture of at most four kinds, a miss among them: try every four of them."""
    ranks = [1 + step / 2 for step in range(2 * k - 1)] if ties else list(range(1, k + 1))
    points = [(0.0, 0.0, 0.0), *((1.0, 1 / math.log2(1 + rank), 1 / rank) for rank in ranks)]
    corners = [torch.tensor(four, dtype=torch.float64).T for four in itertools.product(points, repeat=4)]
    systems = torch.stack([torch.cat([corner, torch.ones(1, 4, dtype=torch.float64)]) for corner in corners])
    inverses = torch.linalg.pinv(systems)
    generator = torch.Generator().manual_seed(k)
    answers = []
    for _ in range(300):
        mixed = torch.rand(len(points), generator=generator, dtype=torch.float64) ** 3
        triple = mixed / mixed.sum() @ torch.tensor(points, dtype=torch.float64)
        triple += (
            0.01 * torch.randn(3, generator=generator, dtype=torch.float64) * (torch.rand(1, generator=generator) < 0.8)
        )
        right = torch.cat([triple, torch.ones(1, dtype=torch.float64)])
        weights = inverses @ right
        solved = ((systems @ weights[:, :, None])[:, :, 0] - right).abs().amax(1) < 1e-8
        mixture = bool((solved & (weights > -1e-9).all(1)).any())
        assert is_possible(*triple.tolist(), k, tolerance=1e-9, ties=ties) == mixture
        answers.append(mixture)
    assert 30 < sum(answers) < 270  # both answers are tried


def test_triples_by_hand() -> None:
    assert is_possible(0.5, 0.5, 0.5)  # half of the targets first
    assert not is_possible(0.5, 0.5, 0.4)
    assert mrr_interval(1.0, 1 / math.log2(3)) == pytest.approx((0.5, 0.5328), abs=1e-4)
    assert is_possible(0.0, 0.0, 0.0)
    assert mrr_interval(0.0, 0.0) == (0.0, 0.0)
    assert not is_possible(1.2, 1.2, 1.2)
    assert not is_possible(math.nan, 0.1, 0.1)
    assert not is_possible(-0.1, -0.1, -0.1)
    assert is_possible(0.7, 0.7, 0.7, k=1)
    assert not is_possible(0.7, 0.6, 0.6, k=1)
    half = means_of([1.5], 10)
    assert is_possible(*half, ties=True)
    assert not is_possible(*half)


def test_triples_errors() -> None:
    with pytest.raises(DataError, match="k: found 0"):
        is_possible(0.5, 0.5, 0.5, k=0)
    with pytest.raises(DataError, match="tolerance: found -1"):
        is_possible(0.5, 0.5, 0.5, tolerance=-1)
    with pytest.raises(DataError, match=r"no rankings with one relevant item have HR@10 0\.5 and NDCG@10 0\.6"):
        mrr_interval(0.5, 0.6)
