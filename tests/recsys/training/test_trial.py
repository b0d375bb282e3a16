"""What is refused before a backbone is trained."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramer_peft.encoders import register_request_encoder
from cramer_peft.errors import ConfigError, CramerError, DataError, EncoderError, MissingExtraError
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.recsys.training.trial import check_masks, check_seed
from cramer_peft.training import Checkpoints

pytest.importorskip("accelerate")
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}


@pytest.fixture
def options(stated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """Options of a training that ends with a failed test if anything is trained."""
    monkeypatch.setattr("cramer_peft.training.ResumableTrainer.train", lambda *_, **__: pytest.fail("trained"))
    return TrainOptions(str(stated), tmp_path / "out", config=HASHING, epochs=1, progress=False)


def refusal(options: TrainOptions) -> CramerError:
    with pytest.raises(CramerError) as caught:
        train_recommender(options, say=lambda _: None)
    assert not options.output.exists()
    return caught.value


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**HASHING, "request_dim": 5}, "request_dim=5"),
        ({"request_dim": 5}, "request_dim=5"),
        ({**HASHING, "target_modules": ["dense.nowhere"]}, "dense.nowhere"),
        ({**HASHING, "target_modules": "(", "exclude_modules": None}, "target_modules"),
        ({**HASHING, "exclude_modules": ".*"}, "exclude_modules"),
        ({**HASHING, "module_parts": ["q"]}, "module_parts"),
        ({**HASHING, "encoder_tuning": "all"}, "encoder_tuning"),
        ({**HASHING, "encoder_options": {"dim": 0}}, "dim"),
        ({**HASHING, "encoder_options": {"width": 3}}, "width"),
        ({"encoder": "transformers", "encoder_options": {"model_name_or_path": "no/where"}}, "no/where"),
        ({"encoder": "telepathy"}, "telepathy"),
        ({**HASHING, "default_request": [0.5, 0.5]}, "default_request"),
        ({**HASHING, "task_type": "GUESSING"}, "GUESSING"),
        ({**HASHING, "gate": "wide"}, "gate"),
    ],
)
@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_masks_that_cannot_be(options: TrainOptions, config: dict[str, Any], message: str, backbone: str) -> None:
    if "encoder" not in config:
        pytest.importorskip("wordllama")
    assert message in str(refusal(replace(options, config=config, backbone=backbone)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": ()}, "attributes"),
        ({"attributes": ("Drama", "Drama")}, "more than once"),
        ({"attributes": ("Western",)}, "Western"),
        ({"sparsity_weight": 0.5}, "sparsity_weight"),
    ],
)
def test_options_of_the_generator(options: TrainOptions, changes: dict[str, Any], message: str) -> None:
    assert message in str(refusal(replace(options, generator=GeneratorOptions(**changes))))


def test_negatives_beside_a_masked_head(options: TrainOptions) -> None:
    config = {**HASHING, "target_modules": ["head"]}
    assert "leave it out of target_modules" in str(refusal(replace(options, config=config, negatives=8)))


def test_a_missing_package(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    assert isinstance(refusal(replace(options, config={})), MissingExtraError)
    assert isinstance(refusal(replace(options, config={"encoder": "wordllama"})), MissingExtraError)


def test_an_encoder_of_ones_own_that_fails(options: TrainOptions) -> None:
    class Odd:
        name, dim = "odd", 4

        def encode(self, texts: Sequence[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 4)

    register_request_encoder("odd", Odd)
    message = str(refusal(replace(options, config={"encoder": "odd", "request_dim": 7})))
    assert "width 4" in message
    assert "request_dim=7" in message


def test_an_output_that_cannot_be_written(options: TrainOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"output: .*file is not a folder"):
            train_recommender(replace(options, output=output), say=lambda _: None)


@pytest.mark.parametrize("name", ["backbone", "adapter", "catalogue.json", "training.json"])
def test_something_else_in_the_place_of_a_part(name: str, options: TrainOptions) -> None:
    place = options.output / name
    if place.suffix:
        place.mkdir(parents=True)
        (place / "mine").write_text("mine")
    else:
        options.output.mkdir()
        place.write_text("mine")
    with pytest.raises(ConfigError, match=rf"output: .*{name}"):
        train_recommender(options, say=lambda _: None)
    assert (place / "mine" if place.suffix else place).read_text() == "mine"


def test_checkpoints_that_are_there_already(options: TrainOptions, tmp_path: Path) -> None:
    (tmp_path / "kept" / "generator" / "checkpoint-7").mkdir(parents=True)
    assert "--resume" in str(refusal(replace(options, checkpoints=Checkpoints(tmp_path / "kept"))))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_that_is_none(options: TrainOptions, seed: Any) -> None:
    assert "seed: found" in str(refusal(replace(options, seed=seed)))
    for good in (0, 2**32 - 1):
        check_seed(good)


def test_a_catalogue_that_is_too_large_to_be_saved(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramer_peft.recsys.data.catalogue.MAX_CATALOGUE_BYTES", 100)
    assert "catalogue takes" in str(refusal(options))


def test_requests_of_another_type(options: TrainOptions, stated: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x.item").write_text((stated / "x.item").read_text())
    header, *lines = (stated / "x.inter").read_text().splitlines()
    rows = ["\t".join([*line.split("\t")[:3], "1"]) for line in lines]
    (data / "x.inter").write_text("\n".join([header.replace("request:token_seq", "request:float"), *rows]) + "\n")
    error = refusal(replace(options, data=str(data)))
    assert isinstance(error, DataError)
    assert "column 'request' has type float" in str(error)


def test_the_trial_draws_no_random_number(stated: Path) -> None:
    from cramer_peft.recsys.data.own_data import load_own_data
    from cramer_peft.recsys.training.recommender_training import mask_config

    data = load_own_data(str(stated))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_masks("sasrec", data, mask_config(HASHING), "hashing", BackboneOptions())
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(EncoderError, match="request_dim=3"):
        check_masks("sasrec", data, mask_config({**HASHING, "request_dim": 3}), "hashing", BackboneOptions())
    assert json.dumps(HASHING)
