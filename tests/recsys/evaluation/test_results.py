from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.data.own_data import OwnData, load_own_data
from cramer_peft.recsys.evaluation.metrics import ndcg, overlap, share, target_ranks, top_items
from cramer_peft.recsys.evaluation.results import evaluate_stage, mean_metrics
from cramer_peft.recsys.evaluation.tracks import OWN, SHUFFLED, Track, mixed_tracks
from cramer_peft.recsys.evaluation.users import EvaluationUsers, Scorer, batched_scores, mask_scorer
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, RequestGenerator
from cramer_peft.recsys.requests.matching import match_scores
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

K = 5
pytest.importorskip("accelerate")


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
    users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor
) -> Callable[[Tensor, Sequence[str | None]], Tensor]:
    """The frozen model, with what satisfies a request put in front: it knows what each text means."""
    meanings = {r.text: r for track in tracks.values() for r in track.requests}
    plain = scorer_of(users, frozen)

    def score(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        requests = [meanings.get(text or "", AttributeRequest("", (), (), "none")) for text in texts]
        match = match_scores(requests, users.catalogue.attributes, users.catalogue.item_attributes)
        return plain(item_ids, texts) + 1e3 * match

    return score


def test_the_frozen_model_overlaps_itself(users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor) -> None:
    metrics = mean_metrics(scorer_of(users, frozen), scorer_of(users, frozen), users, tracks, K)
    assert metrics["overlap_empty"] == metrics["overlap_blank"] == 1
    assert 1 >= metrics["hr"] >= metrics["ndcg"] >= metrics["mrr"] >= 0
    flags = users.catalogue.item_attributes
    top = top_items(frozen, users.seen, K)
    shares = []
    for user, request in enumerate(tracks["for"].requests):
        column = users.catalogue.attributes.index(request.wanted[0])
        shares.append(flags[top[user], column].float().mean().item())
    assert metrics["satisfaction"] == pytest.approx(sum(shares) / 30)


def test_a_filter_that_knows_the_answer(users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor) -> None:
    metrics = mean_metrics(filter_of(users, tracks, frozen), scorer_of(users, frozen), users, tracks, K)
    plain = mean_metrics(scorer_of(users, frozen), scorer_of(users, frozen), users, tracks, K)
    reachable = []
    for user, request in enumerate(tracks["for"].requests):
        column = users.catalogue.attributes.index(request.wanted[0])
        unseen = int((users.catalogue.item_attributes[:, column] & ~users.seen[user]).sum())
        reachable.append(min(unseen, K) / K)
    assert metrics["satisfaction"] == pytest.approx(sum(reachable) / 30)
    assert metrics["satisfaction"] > 2 * plain["satisfaction"]
    assert metrics["violation"] == metrics["favourite"] == 0
    assert plain["violation"] > 0
    assert metrics["ndcg"] > plain["ndcg"]
    assert metrics["overlap_empty"] == metrics["overlap_blank"] == 1


def test_shuffled_requests_are_worth_less(users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor) -> None:
    truthful = list(tracks["truthful"].requests)
    swapped = replace(tracks["truthful"], requests=tuple(truthful[7:] + truthful[:7]))
    shuffled = {**tracks, "truthful": swapped}
    right = mean_metrics(filter_of(users, tracks, frozen), scorer_of(users, frozen), users, tracks, K)
    wrong = mean_metrics(filter_of(users, shuffled, frozen), scorer_of(users, frozen), users, shuffled, K)
    assert wrong["ndcg"] < right["ndcg"]
    assert {name: value for name, value in wrong.items() if "ndcg" not in name and name not in ("hr", "mrr")} == {
        name: value for name, value in right.items() if "ndcg" not in name and name not in ("hr", "mrr")
    }


def test_families_make_up_the_whole(users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor) -> None:
    metrics = mean_metrics(scorer_of(users, frozen), scorer_of(users, frozen), users, tracks, K)
    families = [request.family for request in tracks["truthful"].requests]
    parts = {name.removeprefix("ndcg:"): value for name, value in metrics.items() if name.startswith("ndcg:")}
    assert set(parts) == set(families)
    assert sum(parts[family] for family in families) / 30 == pytest.approx(metrics["ndcg"], abs=1e-6)


def test_seen_items_are_neither_ranked_nor_recommended(
    users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor
) -> None:
    target_second = frozen.scatter(1, users.targets[:, None], 2.0)
    metrics = mean_metrics(
        scorer_of(users, target_second + 5 * users.seen.float()), scorer_of(users, frozen), users, tracks, K
    )
    assert metrics["ndcg"] == metrics["hr"] == metrics["mrr"] == 1


def test_blank_requests_are_the_frozen_model_through_masks(
    users: EvaluationUsers, tracks: dict[str, Track], masks: RequestMaskModel
) -> None:
    metrics = mean_metrics(mask_scorer(masks), mask_scorer(masks), users, tracks, K)
    assert metrics["overlap_blank"] == 1
    assert metrics["overlap_empty"] < 1  # random masks: asking nothing in words is a request to them


def test_metrics_do_not_depend_on_the_batch(
    make_sasrec: Callable[..., SASRec],
    users: EvaluationUsers,
    tracks: dict[str, Track],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sizes = make_sasrec(), []

    def scorer(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        sizes.append(len(item_ids))
        scores: Tensor = model(item_ids)
        return scores + torch.tensor([float(len(text or "") % 3) for text in texts])[:, None]

    texts = [None] * len(users)
    frozen = batched_scores(scorer, users.item_ids, texts)
    whole = mean_metrics(scorer, scorer, users, tracks)
    assert set(sizes) == {30}  # in one piece
    monkeypatch.setattr("cramer_peft.recsys.evaluation.users.BATCH", 7)
    assert torch.allclose(batched_scores(scorer, users.item_ids, texts), frozen, atol=1e-6)
    assert mean_metrics(scorer, scorer, users, tracks) == whole
    assert max(sizes[-20:]) == 7


def test_a_large_catalogue_is_measured_in_small_blocks(
    users: EvaluationUsers, tracks: dict[str, Track], frozen: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, plain = [], scorer_of(users, frozen)

    def scorer(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        sizes.append(len(item_ids))
        return plain(item_ids, texts)

    whole = mean_metrics(scorer, scorer, users, tracks, K)
    monkeypatch.setattr("cramer_peft.recsys.evaluation.batches.CELLS", 4 * len(users.catalogue) + 1)
    sizes.clear()
    assert mean_metrics(scorer, scorer, users, tracks, K) == whole
    assert set(sizes) == {4, 2}  # 30 users


@pytest.fixture
def loaded(stated: Path) -> OwnData:
    return load_own_data(stated)


def test_values_are_those_of_the_metrics(loaded: OwnData, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    items = len(loaded.catalogue)
    weights, own = torch.randn(items + 1, items, generator=generator), torch.randn(items, generator=generator)

    def frozen(item_ids: torch.Tensor, requests: Any = ()) -> torch.Tensor:
        return weights[item_ids].sum(1)

    def adapted(item_ids: torch.Tensor, requests: Any) -> torch.Tensor:
        return frozen(item_ids) + own * torch.tensor([float(len(text.strip())) for text in requests])[:, None]

    monkeypatch.setattr("cramer_peft.recsys.evaluation.evaluator.BLOCK", 7)
    results = evaluate_stage(frozen, adapted, loaded, "test", TRAIN_TEMPLATES, 8)
    assert set(results) == {"truthful", "for", "against", "against favourite", "empty", OWN, SHUFFLED}
    texts = loaded.own_requests("test")
    assert texts is not None
    rows = [row for row, text in enumerate(texts) if text]
    histories = loaded.split.history("test")
    seen, inputs = seen_mask(histories, items), pad_histories(histories, 8)
    scores = adapted(inputs, [text or "" for text in texts])
    ranks = target_ranks(scores.masked_fill(seen, -torch.inf), loaded.split.test_target)
    assert results[OWN].users == len(rows)
    assert results[OWN].adapted["ndcg"].estimate == pytest.approx(float(ndcg(ranks)[rows].mean()), abs=1e-6)
    change = results[OWN].adapted["ndcg"].estimate - results[OWN].frozen["ndcg"].estimate
    assert results[OWN].change["ndcg"].estimate == pytest.approx(change, abs=1e-6)
    for name in ("for", "against", "against favourite"):
        assert set(results[name].ratios) >= {"retention"}
    same = evaluate_stage(frozen, frozen, loaded, "test", TRAIN_TEMPLATES, 8)
    assert same["empty"].adapted["overlap"].estimate == 1
    for name, result in same.items():
        assert all(interval.estimate == 0 for interval in result.change.values()), name
    ratio = same["against favourite"].ratios["ratio"]
    assert ratio is not None
    assert ratio.estimate == 1
    gain = same["for"].ratios["normalised_gain"]
    assert gain is not None
    assert gain.estimate == 0


def test_a_filter_that_knows_reaches_the_ceiling(loaded: OwnData) -> None:
    items, names = len(loaded.catalogue), loaded.catalogue.attributes

    def oracle(item_ids: torch.Tensor, requests: Any) -> torch.Tensor:
        flags = loaded.catalogue.item_attributes.float()
        asked = [[float(name.lower() in text.lower()) for name in names] for text in requests]
        return torch.tensor(asked) @ flags.T

    results = evaluate_stage(lambda ids, _: torch.zeros(len(ids), items), oracle, loaded, "test", TRAIN_TEMPLATES, 8)
    gain = results["for"].ratios["normalised_gain"]
    assert gain is not None
    assert gain.estimate == pytest.approx(1)
    assert results["for"].adapted["satisfaction"].estimate > results["for"].frozen["satisfaction"].estimate


def test_fewer_users(loaded: OwnData) -> None:
    items = len(loaded.catalogue)
    results = evaluate_stage(
        lambda ids, _: torch.rand(len(ids), items),
        lambda ids, _: torch.rand(len(ids), items),
        loaded,
        "validation",
        TRAIN_TEMPLATES,
        8,
        users=5,
    )
    assert results["for"].users == 5
    assert results.get(OWN) is None or results[OWN].users <= 5
    assert share(top_items(torch.rand(1, items), torch.zeros(1, items).bool()), torch.ones(1, items).bool()) == 1
    assert overlap(torch.arange(10)[None], torch.arange(10)[None]) == 1


# --- the figures that commit 9aae9b6 gave, from three evaluators


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected), place
        for name, value in expected.items():
            assert_same(found[name], value, f"{place}/{name}")
    else:
        assert found == (expected if expected is None else pytest.approx(expected, abs=1e-7)), place


def test_the_figures_are_those_of_before(
    loaded: OwnData, plain_scorers: Callable[[int], tuple[Scorer, Scorer]]
) -> None:
    expected = json.loads(Path(__file__).with_name("figures_9aae9b6.json").read_text())
    frozen, adapted = plain_scorers(len(loaded.catalogue))
    for stage, templates, most in (("test", TEST_TEMPLATES, None), ("validation", TRAIN_TEMPLATES, 11)):
        results = evaluate_stage(frozen, adapted, loaded, stage, templates, 8, 3, most)  # type: ignore[arg-type]
        assert results.pop(SHUFFLED).adapted.keys() == {"ndcg"}  # new since then
        assert_same({name: result.as_dict() for name, result in results.items()}, expected["stages"][stage])
    users = EvaluationUsers.of(loaded.catalogue, loaded.split, "test", 8)
    for seed in (0, 4):
        tracks = mixed_tracks(users, RequestGenerator(loaded.catalogue.attributes, TEST_TEMPLATES), seed)
        assert_same(mean_metrics(adapted, frozen, users, tracks), expected["mixed"][str(seed)])
