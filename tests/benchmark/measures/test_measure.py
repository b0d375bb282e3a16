from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.baselines import OracleFilter, RankerTask
from benchmark.measures.measure import Setting, make_tracks, measure
from torch import Tensor

from cramer_peft import HashingEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.own_data import load_own_data
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation import evaluator
from cramer_peft.recsys.evaluation.users import Scorer
from cramer_peft.recsys.requests.matching import satisfies


@pytest.fixture
def setting(catalogue: Catalogue, split: Split) -> Setting:
    return Setting(catalogue, split.history("test"), split.test_target, max_length=8, seed=0)


@pytest.fixture
def frozen(make_sasrec: Callable[..., SASRec]) -> Callable[[Tensor, Sequence[str | None]], Tensor]:
    model = make_sasrec()
    return lambda item_ids, requests: model(item_ids)


def test_only_truthful_tracks_know_what_comes_next(setting: Setting) -> None:
    other = replace(setting, targets=(setting.targets + 1) % len(setting.catalogue))
    first, second = make_tracks(setting), make_tracks(other)
    differing = {name for name in first if first[name].requests != second[name].requests}
    assert differing == {"truthful", "truthful, shuffled", "seen wordings truthful"}


def test_the_frozen_model_gains_nothing_and_loses_nothing(setting: Setting, frozen: Scorer) -> None:
    measured = measure(setting, frozen, reads=False)
    tracks = measured.figures["tracks"]
    assert tracks["for"]["normalised_gain"]["value"] == 0
    assert tracks["for"]["retention"]["value"] == 1
    assert tracks["truthful"]["ndcg_ratio"]["value"] == 1
    assert {tracks[name]["overlap"]["value"] for name in ("empty", "irrelevant", "contradictory", "blank")} == {1}
    assert all(check["holds"] for check in measured.figures["checks"])


def test_a_filter_that_knows_gains_everything(setting: Setting, sasrec: SASRec, split: Split, frozen: Scorer) -> None:
    task, tracks = RankerTask(sasrec, HashingEncoder(8), setting.catalogue, split), make_tracks(setting)
    oracle = OracleFilter().know(*(track.requests for name, track in tracks.items() if "shuffled" not in name))
    oracle.fit(task)
    model = task.backbone
    measured = measure(setting, lambda item_ids, _: model(item_ids), oracle.scores, tracks=tracks)
    found = measured.figures["tracks"]
    assert found["for"]["normalised_gain"]["value"] == pytest.approx(1)
    assert found["against favourite"]["share"]["value"] == pytest.approx(0)
    assert found["for"]["retention"]["value"] == pytest.approx(1, abs=0.01)
    checks = {check["name"]: check["holds"] for check in measured.figures["checks"]}
    assert checks["the oracle filter is never beaten"]
    assert checks["blank requests and strength 0 give the frozen scores"]
    shares = measured.figures["attribute_shares"]
    asked = [value for value in shares["for"] if value is not None]
    assert max(asked) == pytest.approx(1)
    assert {value for value in shares["against"] if value is not None} == {0}


def test_values_are_per_user_and_make_up_the_figures(setting: Setting, frozen: Scorer) -> None:
    measured = measure(setting, frozen, lambda item_ids, texts: -frozen(item_ids, texts), reads=False)
    for key in ("truthful/ndcg", "for/satisfaction", "empty/overlap"):
        track, metric = key.split("/")
        values = measured.values[key]
        assert values.shape == setting.targets.shape
        entry = measured.figures["tracks"][track][metric]
        assert entry["value"] == pytest.approx(float(values.nanmean()), abs=1e-6)
        assert entry["low"] <= entry["value"] <= entry["high"]
    wished = [measured.values[f"for/{name}satisfaction"].mean() for name in ("", "frozen_", "best_")]
    gain = float((wished[0] - wished[1]) / (wished[2] - wished[1]))
    assert measured.figures["tracks"]["for"]["normalised_gain"]["value"] == pytest.approx(gain, abs=1e-5)


def test_retention_counts_only_users_whose_item_satisfies(setting: Setting, frozen: Scorer) -> None:
    track = make_tracks(setting)["for"]
    catalogue = setting.catalogue
    fits = satisfies(track.requests, catalogue.attributes, catalogue.item_attributes)
    fits = fits.gather(1, setting.targets[:, None])[:, 0]
    values = measure(setting, frozen, reads=False).values["for/inside_ndcg"]
    assert torch.equal(~values.isnan(), fits)


def test_blocks_make_no_difference(setting: Setting, frozen: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(setting, frozen, reads=False).values
    monkeypatch.setattr(evaluator, "BLOCK", 7)
    parts = measure(setting, frozen, reads=False).values
    assert whole.keys() == parts.keys()
    for key, values in whole.items():
        if "100 negatives" not in key:  # their draw goes by block
            torch.testing.assert_close(parts[key], values, equal_nan=True)


def test_strength_is_swept_and_checked_at_zero(setting: Setting, frozen: Scorer) -> None:
    def at(item_ids: Tensor, texts: Sequence[str | None], alpha: float) -> Tensor:
        return frozen(item_ids, texts) + (0.001 if alpha == 0 else 0)

    found = measure(setting, frozen, frozen, at, reads=False).figures
    assert len(found["strength"]["alphas"]) == len(found["strength"]["satisfaction"])
    checks = {check["name"]: check["holds"] for check in found["checks"]}
    assert not checks["blank requests and strength 0 give the frozen scores"]


def test_shuffled_requests_must_erase_the_gain(setting: Setting, frozen: Scorer) -> None:
    found = measure(setting, frozen, frozen, reads=True).figures["checks"]
    assert not {check["name"]: check["holds"] for check in found}["shuffled requests erase the gain"]


def test_some_users_stand_for_all(setting: Setting, frozen: Scorer) -> None:
    measured = measure(replace(setting, max_users=12), frozen, reads=False)
    assert measured.figures["users"] == 12
    values = measured.values["for/satisfaction"]
    assert len(values) == len(setting.targets)
    assert int((~values.isnan()).sum()) == 12
    every = measure(setting, frozen, reads=False).values["for/satisfaction"]
    assert torch.equal(values[~values.isnan()], every[~values.isnan()])


def test_what_training_left_out_is_measured_apart(setting: Setting, frozen: Scorer) -> None:
    unseen = torch.arange(len(setting.targets)) < 10
    own = replace(setting, unseen_attributes=("Horror",), unseen_users=unseen)
    tracks = make_tracks(own)
    assert {request.wanted for request in tracks["unseen attributes for"].requests} == {("Horror",)}
    assert ("Horror",) not in {request.wanted for request in tracks["seen attributes for"].requests}
    values = measure(own, frozen, reads=False).values
    assert torch.equal(~values["unseen users truthful/ndcg"].isnan(), unseen & tracks["truthful"].counts)


def test_only_some_tracks_may_be_asked(setting: Setting, frozen: Scorer) -> None:
    found = measure(replace(setting, only=frozenset({"truthful", "empty"})), frozen, reads=False).figures
    assert set(found["tracks"]) == {"truthful", "empty"}


def test_a_catalogue_with_nothing_left_to_recommend_is_refused(setting: Setting) -> None:
    with pytest.raises(DataError, match="fewer than 39"):
        replace(setting, k=39)


def test_the_figures_are_those_of_before(stated: Path, plain_scorers: Callable[[int], tuple[Scorer, Scorer]]) -> None:
    """What commit 9aae9b6 gave, with an evaluator of its own."""
    data = load_own_data(stated)
    frozen, adapted = plain_scorers(len(data.catalogue))

    def at(item_ids: Tensor, texts: Sequence[str | None], strength: float) -> Tensor:
        before = frozen(item_ids, texts)
        return before + strength * (adapted(item_ids, texts) - before)

    unseen = torch.arange(30) < 10
    own = Setting(data.catalogue, data.split.history("test"), data.split.test_target, 8, 2, 10, ("Horror",), unseen)
    found = measure(own, frozen, adapted, at).figures
    expected = json.loads(Path(__file__).with_name("figures_9aae9b6.json").read_text())
    assert found["checks"] == expected["checks"]
    assert found["users"] == expected["users"]
    assert found["tracks"].keys() == expected["tracks"].keys()
    for name, metrics in expected["tracks"].items():
        assert found["tracks"][name].keys() == metrics.keys(), name
        for metric, value in metrics.items():
            assert found["tracks"][name][metric] == pytest.approx(value, abs=1e-7), (name, metric)
    assert found["strength"]["satisfaction"] == pytest.approx(expected["strength"]["satisfaction"], abs=1e-7)
    assert found["strength"]["spearman"] == pytest.approx(expected["strength"]["spearman"], abs=1e-7)
