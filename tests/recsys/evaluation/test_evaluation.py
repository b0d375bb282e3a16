import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Tracks, evaluate, make_tracks
from cramer_peft.recsys.evaluation.metrics import top_items
from cramer_peft.recsys.requests.attributes import AttributeRequest, RequestGenerator, match_scores, satisfies
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES

K = 5


@pytest.fixture
def frozen(users: EvaluationUsers) -> Tensor:
    """Scores of a model that knows nothing, without ties."""
    return torch.rand(users.seen.shape, generator=torch.Generator().manual_seed(3))


def scorer_of(users: EvaluationUsers, scores: Tensor) -> Callable[[Tensor, Sequence[str | None]], Tensor]:
    """A scorer that ignores requests; it finds its users again by their histories."""
    rows = {tuple(row): scores[index] for index, row in enumerate(users.item_ids.tolist())}
    assert len(rows) == len(users.item_ids)
    return lambda item_ids, _: torch.stack([rows[tuple(row)] for row in item_ids.tolist()])


def filter_of(
    users: EvaluationUsers, tracks: Tracks, frozen: Tensor
) -> Callable[[Tensor, Sequence[str | None]], Tensor]:
    """The frozen model, with what satisfies a request put in front: it knows what each text means."""
    meanings = {r.text: r for track in vars(tracks).values() for r in track}
    plain = scorer_of(users, frozen)

    def score(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        requests = [meanings.get(text or "", AttributeRequest("", (), (), "none")) for text in texts]
        match = match_scores(requests, users.catalogue.attributes, users.catalogue.item_attributes)
        return plain(item_ids, texts) + 1e3 * match

    return score


# --- users and tracks


def test_users_of_a_stage(catalogue: Catalogue, split: Split) -> None:
    for stage, targets, length in (("validation", split.validation_target, 2), ("test", split.test_target, 1)):
        users = EvaluationUsers.of(catalogue, split, stage, 4)  # type: ignore[arg-type]
        assert torch.equal(users.targets, targets)
        assert users.item_ids.shape == (30, 4)
        assert users.seen.sum(1).tolist() == [6 + user % 7 - length for user in range(30)]  # not cut at 4
        assert not users.seen.gather(1, targets[:, None]).any()


def test_scores_are_those_of_one_batch(users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramer_peft.recsys.evaluation.evaluation._BATCH", 7)
    requests = [AttributeRequest(f"text {index}", (), (), "none") for index in range(30)]
    seen: list[str | None] = []

    def scorer(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        assert len(item_ids) == len(texts) <= 7
        seen.extend(texts)
        return item_ids.float()

    assert torch.equal(users.score(scorer, requests), users.item_ids.float())
    assert seen == [request.text for request in requests]
    seen.clear()
    users.score(scorer, None)
    assert seen == [None] * 30


def test_tracks_ask_what_they_say(users: EvaluationUsers, tracks: Tracks) -> None:
    assert all(len(track) == 30 for track in vars(tracks).values())
    fits = satisfies(tracks.truthful, users.catalogue.attributes, users.catalogue.item_attributes)
    assert bool(fits.gather(1, users.targets[:, None]).all())
    assert {request.family for request in tracks.wanted} == {"for"}
    assert {request.family for request in tracks.unwanted} == {"against"}
    assert {request.family for request in tracks.empty} == {"none"}
    for user, request in enumerate(tracks.favourite):
        counts = users.catalogue.item_attributes[users.seen[user]].sum(0)
        (name,) = request.unwanted
        assert request.family == "against"
        assert counts[users.catalogue.attributes.index(name)] == counts.max()


def test_only_the_truthful_track_depends_on_the_targets(users: EvaluationUsers) -> None:
    requests = RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES)
    for seed in range(10):  # several, because two runs of one stream can fall into step again
        first = make_tracks(users, requests, seed)
        assert make_tracks(users, requests, seed) == first
        targets = torch.tensor([random.Random(seed + user).randrange(40) for user in range(30)])
        other = make_tracks(replace(users, targets=targets), requests, seed)
        assert other.truthful != first.truthful
        assert replace(other, truthful=first.truthful) == first


def test_another_seed_asks_otherwise(users: EvaluationUsers, tracks: Tracks) -> None:
    other = make_tracks(users, RequestGenerator(users.catalogue.attributes, TEST_TEMPLATES), seed=1)
    for name, track in vars(other).items():
        assert track != getattr(tracks, name), name


# --- evaluate


def test_the_frozen_model_overlaps_itself(users: EvaluationUsers, tracks: Tracks, frozen: Tensor) -> None:
    metrics = evaluate(scorer_of(users, frozen), users, tracks, frozen, K)
    assert metrics["overlap_empty"] == metrics["overlap_blank"] == 1
    assert 1 >= metrics["hr"] >= metrics["ndcg"] >= metrics["mrr"] >= 0
    flags = users.catalogue.item_attributes
    top = top_items(frozen, users.seen, K)
    shares = []
    for user, request in enumerate(tracks.wanted):
        column = users.catalogue.attributes.index(request.wanted[0])
        shares.append(flags[top[user], column].float().mean().item())
    assert metrics["satisfaction"] == pytest.approx(sum(shares) / 30)


def test_a_filter_that_knows_the_answer(users: EvaluationUsers, tracks: Tracks, frozen: Tensor) -> None:
    metrics = evaluate(filter_of(users, tracks, frozen), users, tracks, frozen, K)
    plain = evaluate(scorer_of(users, frozen), users, tracks, frozen, K)
    reachable = []
    for user, request in enumerate(tracks.wanted):
        column = users.catalogue.attributes.index(request.wanted[0])
        unseen = int((users.catalogue.item_attributes[:, column] & ~users.seen[user]).sum())
        reachable.append(min(unseen, K) / K)
    assert metrics["satisfaction"] == pytest.approx(sum(reachable) / 30)
    assert metrics["satisfaction"] > 2 * plain["satisfaction"]
    assert metrics["violation"] == metrics["favourite"] == 0
    assert plain["violation"] > 0
    assert metrics["ndcg"] > plain["ndcg"]
    assert metrics["overlap_empty"] == metrics["overlap_blank"] == 1


def test_shuffled_requests_are_worth_less(users: EvaluationUsers, tracks: Tracks, frozen: Tensor) -> None:
    truthful = list(tracks.truthful)
    shuffled = replace(tracks, truthful=tuple(truthful[7:] + truthful[:7]))
    right = evaluate(filter_of(users, tracks, frozen), users, tracks, frozen, K)
    wrong = evaluate(filter_of(users, shuffled, frozen), users, shuffled, frozen, K)
    assert wrong["ndcg"] < right["ndcg"]
    assert {name: value for name, value in wrong.items() if "ndcg" not in name and name not in ("hr", "mrr")} == {
        name: value for name, value in right.items() if "ndcg" not in name and name not in ("hr", "mrr")
    }


def test_families_make_up_the_whole(users: EvaluationUsers, tracks: Tracks, frozen: Tensor) -> None:
    metrics = evaluate(scorer_of(users, frozen), users, tracks, frozen, K)
    families = [request.family for request in tracks.truthful]
    parts = {name.removeprefix("ndcg:"): value for name, value in metrics.items() if name.startswith("ndcg:")}
    assert set(parts) == set(families)
    assert sum(parts[family] for family in families) / 30 == pytest.approx(metrics["ndcg"], abs=1e-6)


def test_seen_items_are_neither_ranked_nor_recommended(users: EvaluationUsers, tracks: Tracks, frozen: Tensor) -> None:
    target_second = frozen.scatter(1, users.targets[:, None], 2.0)
    metrics = evaluate(scorer_of(users, target_second + 5 * users.seen.float()), users, tracks, frozen, K)
    assert metrics["ndcg"] == metrics["hr"] == metrics["mrr"] == 1


def test_blank_requests_are_the_frozen_model_through_masks(
    users: EvaluationUsers, tracks: Tracks, masks: RequestMaskModel
) -> None:
    frozen = masks(users.item_ids, request=None).detach()
    metrics = evaluate(lambda ids, texts: masks(ids, request=list(texts)), users, tracks, frozen, K)
    assert metrics["overlap_blank"] == 1
    assert metrics["overlap_empty"] < 1  # random masks: asking nothing in words is a request to them
