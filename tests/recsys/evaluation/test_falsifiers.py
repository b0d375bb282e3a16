import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft import RequestMaskModel
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.control import best_share
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers
from cramer_peft.recsys.evaluation.falsifiers import (
    check_ceiling,
    check_identity,
    check_reported,
    check_shuffled,
    check_triple,
    oracle_filter,
    shuffled,
)
from cramer_peft.recsys.evaluation.metrics import expected_share, ndcg, target_ranks
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, truthful_track
from cramer_peft.recsys.requests.attributes import AttributeRequest, match_scores
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
    sweep = BlindTracks(catalogue.attributes, TEST_TEMPLATES, 0).strength_sweep(len(users.item_ids), (0.0, 1.0))
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
