import inspect
from dataclasses import replace

import pytest
import torch
from benchmark.measures.tracks import IRRELEVANT, STRENGTHS, BenchmarkTracks, hold_out, replica_track
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.tracks import Track, history_counts, truthful_track
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.matching import excludes, satisfies
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

NAMES = ("Action", "Comedy", "Drama", "Film-Noir", "Horror")
USERS = 40
BY_NUMBER = [
    "counterfactual_for",
    "counterfactual_against",
    "mixed",
    "paired",
    "shared",
    "empty",
    "blank",
    "irrelevant",
    "contradictory",
    "strength_sweep",
]
BY_HISTORY = ["against_favourite", "for_unwatched", "against_unwatched"]


def blind(seed: int = 0, names: tuple[str, ...] = NAMES) -> BenchmarkTracks:
    return BenchmarkTracks(names, TEST_TEMPLATES, seed)


def counts(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 3, (USERS, len(NAMES)), generator=torch.Generator().manual_seed(seed))


def flat(made: object) -> list[Track]:
    """All tracks in what a method returns."""
    if isinstance(made, Track):
        return [made]
    return [track for part in made for track in flat(part)] if isinstance(made, tuple) else []


def all_blind(tracks: BenchmarkTracks, attributes: int = len(NAMES)) -> list[Track]:
    made = [getattr(tracks, name)(USERS) for name in BY_NUMBER]
    made += [getattr(tracks, name)(counts()[:, :attributes]) for name in BY_HISTORY]
    return [track for entry in made for track in flat(entry)]


# --- what they cannot see


def test_no_blind_track_has_a_place_for_a_target() -> None:
    public = [name for name in dir(BenchmarkTracks) if not name.startswith("_")]
    assert sorted(public) == sorted([*BY_NUMBER, *BY_HISTORY])
    for name in BY_NUMBER:
        parameters = inspect.signature(getattr(BenchmarkTracks, name)).parameters
        assert set(parameters) <= {"self", "users", "strengths"}, name
        assert parameters["users"].annotation == "int"
    for name in BY_HISTORY:
        assert list(inspect.signature(getattr(BenchmarkTracks, name)).parameters) == ["self", "history_counts"], name
    assert list(inspect.signature(BenchmarkTracks).parameters) == ["attributes", "templates", "seed"]
    assert list(inspect.signature(history_counts).parameters) == ["histories", "item_attributes"]
    assert list(inspect.signature(replica_track).parameters) == ["catalogue", "histories"]


def test_another_future_changes_the_truthful_track_alone(
    catalogue: Catalogue, split: Split, users: EvaluationUsers
) -> None:
    def made(split: Split) -> tuple[list[Track], Track]:
        tracks = BenchmarkTracks(catalogue.attributes, TEST_TEMPLATES, 0)
        histories = split.history("test")
        table = history_counts(histories, catalogue.item_attributes)
        others = [entry for name in BY_NUMBER for entry in flat(getattr(tracks, name)(len(histories)))]
        others += [getattr(tracks, name)(table) for name in BY_HISTORY]
        target_attributes = catalogue.item_attributes[split.test_target]
        truthful = truthful_track(target_attributes, catalogue.attributes, TEST_TEMPLATES, 0)
        return [*others, replica_track(catalogue, histories)], truthful

    before, truthful = made(split)
    after, other = made(replace(split, test_target=(split.test_target + 1) % len(catalogue)))
    assert [track.requests for track in before] == [track.requests for track in after]
    assert truthful.requests != other.requests


# --- what they ask


def test_each_asks_what_it_says() -> None:
    tracks = blind()
    for name, wanted, unwanted in (
        ("counterfactual_for", 1, 0),
        ("counterfactual_against", 0, 1),
        ("mixed", 1, 1),
        ("empty", 0, 0),
        ("blank", 0, 0),
        ("irrelevant", 0, 0),
        ("contradictory", 1, 1),
    ):
        track = getattr(tracks, name)(USERS)
        assert len(track) == USERS
        assert bool(track.counts.all())
        for request in track.requests:
            assert (len(request.wanted), len(request.unwanted)) == (wanted, unwanted)
            assert all(phrase(attribute) in request.text for attribute in (*request.wanted, *request.unwanted))
            if name == "mixed":
                assert request.wanted != request.unwanted
            if name == "contradictory":
                assert request.wanted == request.unwanted
    named = {request.wanted for request in tracks.counterfactual_for(USERS).requests}
    assert len(named) == len(NAMES)  # all of the vocabulary comes up
    assert {request.text for request in tracks.blank(3).requests} == {" "}


def test_paired_is_a_request_and_its_negation() -> None:
    wanted, unwanted = blind().paired(USERS)
    assert [request.wanted for request in wanted.requests] == [request.unwanted for request in unwanted.requests]
    assert len({request.wanted for request in wanted.requests}) == len(NAMES)


def test_shared_is_one_request() -> None:
    assert len(set(blind().shared(USERS).requests)) == 1
    assert len({blind(seed).shared(2).requests[0].wanted for seed in range(40)}) == len(NAMES)


@given(st.integers(0, 1000))
def test_unwatched(seed: int) -> None:
    table = counts(seed)
    for track, field in (
        (blind(seed).for_unwatched(table), "wanted"),
        (blind(seed).against_unwatched(table), "unwanted"),
    ):
        assert track.counts.tolist() == (table == 0).any(1).tolist()
        for request, row, counted in zip(track.requests, table.tolist(), track.counts.tolist(), strict=True):
            assert len(getattr(request, field)) == counted
            assert all(row[NAMES.index(name)] == 0 for name in getattr(request, field))


def test_strength_sweep() -> None:
    sweep = blind().strength_sweep(USERS)
    assert tuple(strength for strength, _ in sweep) == STRENGTHS
    assert len({track.requests for _, track in sweep}) == 1
    for wrong in ((), (0.5, 1.0), (0.0, 1.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(DataError, match="expected increasing numbers from 0"):
            blind().strength_sweep(USERS, wrong)


def test_replica(catalogue: Catalogue) -> None:
    histories = [torch.tensor([0, 1, 2, 3]), torch.tensor([5, 6])]
    track = replica_track(catalogue, histories)
    assert track.counts.tolist() == [True, False]
    assert track.requests[1].text == " "
    text = track.requests[0].text
    places = [text.index(catalogue.titles[item]) for item in (1, 2, 3)]
    assert places == sorted(places)
    assert catalogue.titles[0] not in text
    assert all(phrase(name) in text for item in (1, 2, 3) for name in catalogue.attribute_names(item))


def test_flags(catalogue: Catalogue) -> None:
    tracks = BenchmarkTracks(catalogue.attributes, TEST_TEMPLATES, 0)
    mixed = tracks.mixed(USERS)
    vocabulary = catalogue.attributes, catalogue.item_attributes
    satisfying, excluded = satisfies(mixed.requests, *vocabulary), excludes(mixed.requests, *vocabulary)
    for user, request in enumerate(mixed.requests):
        for item in range(len(catalogue)):
            names = catalogue.attribute_names(item)
            assert bool(excluded[user, item]) == (request.unwanted[0] in names)
            assert bool(satisfying[user, item]) == (request.wanted[0] in names and request.unwanted[0] not in names)
    assert not bool(satisfies(tracks.contradictory(USERS).requests, *vocabulary).any())
    assert bool(satisfies(tracks.empty(USERS).requests, *vocabulary).all())
    assert not bool(excludes(tracks.empty(USERS).requests, *vocabulary).any())


# --- seeds, wordings, what is held out


def test_seeds_and_independent_streams() -> None:
    first = {track.name: track.requests for track in all_blind(blind(3))}
    tracks = blind(3)
    again = {track.name: track.requests for track in reversed(all_blind(tracks))}
    assert again == first
    assert tracks.counterfactual_for(USERS).requests == first["for"]  # not moved by what was drawn before
    assert tracks.counterfactual_for(USERS + 5).requests[:USERS] == first["for"]
    other = {track.name: track.requests for track in all_blind(blind(4))}
    assert {name for name in first if first[name] == other[name]} <= {"blank", "shared"}
    assert first["for"] != first["strength"]


def test_wordings_of_the_test_are_not_those_of_training() -> None:
    for family in TRAIN_TEMPLATES:
        assert not {text.lower() for text in TRAIN_TEMPLATES[family]} & {
            text.lower() for text in TEST_TEMPLATES[family]
        }
    seen = {text.lower() for text in TRAIN_TEMPLATES["none"]}
    assert not {text.lower() for text in IRRELEVANT} & seen
    assert not any(phrase(name) in text.lower() for name in NAMES for text in IRRELEVANT)


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 50))
def test_hold_out_is_a_split(size: int, share: float, seed: int) -> None:
    values = [f"a{index}" for index in range(size)]
    kept, held = hold_out(values, share, seed)
    assert sorted(kept + held, key=values.index) == values
    assert kept
    assert held
    assert abs(len(held) - share * size) <= 1
    assert list(held) == sorted(held, key=values.index)
    assert hold_out(values, share, seed) == (kept, held)


def test_hold_out_depends_on_the_seed() -> None:
    assert len({hold_out(range(20), 0.25, seed) for seed in range(10)}) > 5
    assert all(len(hold_out(range(20), 0.25, seed)[1]) == 5 for seed in range(10))


def test_only_attributes_that_may_be_named_are_named() -> None:
    kept, held = hold_out(NAMES, 0.4, 0)
    for track in all_blind(blind(names=held), len(held)):
        for request in track.requests:
            assert {*request.wanted, *request.unwanted} <= set(held)
            assert not any(phrase(name) in request.text for name in kept)
    truthful = truthful_track(torch.ones(30, len(held), dtype=torch.bool), held, TEST_TEMPLATES, 0)
    assert {request.wanted[0] for request in truthful.requests} == set(held)


def test_errors() -> None:
    with pytest.raises(DataError, match="is empty"):
        blind(names=())
    with pytest.raises(DataError, match="found 0 users"):
        blind().empty(0)
    with pytest.raises(DataError, match=r"shape \(40, 4\), expected \(users, 5\)"):
        blind().for_unwatched(counts()[:, :4])
    with pytest.raises(DataError, match="names 2 attributes"):
        blind(names=("Drama",)).mixed(3)
    with pytest.raises(DataError, match="share: found 1"):
        hold_out(NAMES, 1, 0)
    with pytest.raises(DataError, match="expected two or more, distinct"):
        hold_out(("a", "a"), 0.5, 0)
