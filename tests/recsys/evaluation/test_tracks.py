import inspect
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.tracks import (
    BlindTracks,
    Track,
    history_counts,
    mixed_tracks,
    own_track,
    shuffled_track,
    standard_tracks,
    truthful_track,
)
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import BLANK, AttributeRequest, RequestGenerator, phrase
from cramer_peft.recsys.requests.matching import satisfies
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

NAMES = ("Action", "Comedy", "Drama", "Film-Noir", "Horror")
BY_NUMBER = ["counterfactual_against", "counterfactual_for", "empty"]


def blind(seed: int = 0, names: tuple[str, ...] = NAMES) -> BlindTracks:
    return BlindTracks(names, TEST_TEMPLATES, seed)


def test_no_blind_track_has_a_place_for_a_target() -> None:
    public = [name for name in vars(BlindTracks) if not name.startswith("_")]
    assert sorted(public) == ["against_favourite", *BY_NUMBER]
    for name in BY_NUMBER:
        assert list(inspect.signature(getattr(BlindTracks, name)).parameters) == ["self", "users"], name
    assert list(inspect.signature(BlindTracks.against_favourite).parameters) == ["self", "history_counts"]
    assert list(inspect.signature(BlindTracks).parameters) == ["attributes", "templates", "seed"]


def test_the_truthful_track_sees_attributes_and_nothing_else() -> None:
    names = list(inspect.signature(truthful_track).parameters)
    assert names == ["target_attributes", "attributes", "templates", "seed"]


@given(st.integers(0, 1000))
def test_truthful_exposes_one_declared_attribute(seed: int) -> None:
    has = torch.rand(20, len(NAMES), generator=torch.Generator().manual_seed(seed)) < 0.4
    track = truthful_track(has, NAMES, TEST_TEMPLATES, seed)
    assert track.counts.tolist() == has.any(1).tolist()
    for request, row in zip(track.requests, has.tolist(), strict=True):
        if not any(row):
            assert request.text == " "
            continue
        (name,) = request.wanted
        assert row[NAMES.index(name)]
        assert not request.unwanted
        shown = [other for other in NAMES if phrase(other) in request.text]
        assert shown == [name]


def test_against_favourite() -> None:
    table = torch.tensor([[1, 4, 0, 0, 2], [3, 0, 3, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 7]])
    track = blind().against_favourite(table)
    assert [request.unwanted for request in track.requests] == [("Comedy",), ("Action",), (), ("Horror",)]
    assert track.counts.tolist() == [True, True, False, True]
    assert track.requests[2].text == " "
    few = blind(names=("Drama", "Horror")).against_favourite(table[:, [2, 4]])
    assert [request.unwanted for request in few.requests] == [("Horror",), ("Drama",), (), ("Horror",)]


def test_history_counts(catalogue: Catalogue) -> None:
    histories = [torch.tensor([0, 4, 1]), torch.tensor([3])]
    found = history_counts(histories, catalogue.item_attributes)
    for user, history in enumerate(histories):
        for column, name in enumerate(catalogue.attributes):
            assert int(found[user, column]) == sum(name in catalogue.attribute_names(int(item)) for item in history)


def test_wordings_are_those_given() -> None:
    seen = {text.lower() for text in TRAIN_TEMPLATES["none"]}
    assert not {request.text.lower() for request in blind().empty(200).requests} & seen
    assert {request.family for request in blind().counterfactual_against(9).requests} == {"against"}


def test_standard_tracks_name_one_attribute(users: EvaluationUsers) -> None:
    tracks = standard_tracks(users, TEST_TEMPLATES, 0)
    assert list(tracks) == ["truthful", "for", "against", "against favourite", "empty"]
    assert [(name, track.name) for name, track in tracks.items() if name != track.name] == []
    assert {len(request.wanted) for request in tracks["truthful"].requests} == {1}
    assert {name for name, track in tracks.items() if "overlap" in track.metrics} == {"empty"}
    catalogue = users.catalogue
    fits = satisfies(tracks["truthful"].requests, catalogue.attributes, catalogue.item_attributes)
    assert bool(fits.gather(1, users.targets[:, None]).all())


def test_mixed_tracks_are_measured_by_what_they_ask(users: EvaluationUsers) -> None:
    tracks = mixed_tracks(users, RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES), 0)
    assert list(tracks) == ["truthful", "for", "against", "against favourite", "empty", "blank"]
    assert len({request.family for request in tracks["truthful"].requests}) > 2
    assert all(bool(track.counts.all()) for track in tracks.values())
    assert set(tracks["blank"].requests) == {BLANK}
    kinds = {name: next(iter(track.metrics)) for name, track in tracks.items()}
    assert kinds["truthful"] == "accuracy"
    assert kinds["for"] == kinds["against"] == kinds["against favourite"] == "control"
    assert kinds["empty"] == kinds["blank"] == "overlap"


def test_own_requests_count_where_one_is_stated() -> None:
    track = own_track(["more war", None])
    assert track.counts.tolist() == [True, False]
    assert [request.text for request in track.requests] == ["more war", " "]
    assert track.metrics == {"accuracy"}


def test_errors() -> None:
    with pytest.raises(DataError, match="is empty"):
        blind(names=())
    with pytest.raises(DataError, match="found 0 users"):
        blind().empty(0)
    with pytest.raises(DataError, match=r"shape \(4, 4\), expected \(users, 5\)"):
        blind().against_favourite(torch.ones(4, 4))
    with pytest.raises(DataError, match=r"track 'x': counts is torch\.int64 of shape \(1,\)"):
        Track("x", (BLANK,), torch.ones(1, dtype=torch.long))


def requests_of(tracks: dict[str, Track]) -> dict[str, tuple[AttributeRequest, ...]]:
    return {name: track.requests for name, track in tracks.items()}


def test_tracks_ask_what_they_say(users: EvaluationUsers, tracks: dict[str, Track]) -> None:
    assert all(len(track) == 30 for track in tracks.values())
    fits = satisfies(tracks["truthful"].requests, users.catalogue.attributes, users.catalogue.item_attributes)
    assert bool(fits.gather(1, users.targets[:, None]).all())
    assert {request.family for request in tracks["for"].requests} == {"for"}
    assert {request.family for request in tracks["against"].requests} == {"against"}
    assert {request.family for request in tracks["empty"].requests} == {"none"}
    for user, request in enumerate(tracks["against favourite"].requests):
        counts = users.catalogue.item_attributes[users.seen[user]].sum(0)
        (name,) = request.unwanted
        assert request.family == "against"
        assert counts[users.catalogue.attributes.index(name)] == counts.max()


def test_only_the_truthful_track_depends_on_the_targets(users: EvaluationUsers) -> None:
    requests = RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES)
    for seed in range(10):  # several, because two runs of one stream can fall into step again
        first = requests_of(mixed_tracks(users, requests, seed))
        assert requests_of(mixed_tracks(users, requests, seed)) == first
        targets = torch.tensor([random.Random(seed + user).randrange(40) for user in range(30)])
        other = requests_of(mixed_tracks(replace(users, targets=targets), requests, seed))
        assert other["truthful"] != first["truthful"]
        assert {**other, "truthful": first["truthful"]} == first


def test_another_seed_asks_otherwise(users: EvaluationUsers, tracks: dict[str, Track]) -> None:
    other = mixed_tracks(users, RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES), seed=1)
    for name, track in other.items():
        assert name == "blank" or track.requests != tracks[name].requests, name


def test_shuffled_requests_are_those_of_others() -> None:
    texts = [None, "a", "b", "a", "c", None, "d"]
    track = shuffled_track(texts, seed=1)
    given = [request.text if counts else None for request, counts in zip(track.requests, track.counts, strict=True)]
    assert all(other is None or other != text for other, text in zip(given, texts, strict=True))
    assert all(text is not None for other, text in zip(given, texts, strict=True) if other)
    assert len([other for other in given if other]) >= 3
    assert shuffled_track(texts, seed=1).requests == track.requests
    assert not shuffled_track(["alone", None], seed=1).counts.any()


def test_without_attributes_nothing_is_asked_for(users: EvaluationUsers) -> None:
    bare = Catalogue(users.catalogue.item_ids, users.catalogue.titles, (), users.catalogue.item_attributes[:, :0])
    tracks = standard_tracks(replace(users, catalogue=bare), TEST_TEMPLATES, 0)
    assert list(tracks) == ["empty"]
    assert {request.text for request in tracks["empty"].requests} <= set(TEST_TEMPLATES["none"])
