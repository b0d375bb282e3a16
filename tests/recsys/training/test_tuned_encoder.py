"""A generator's training reaches the part of the request encoder that is tuned with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError, EncoderError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.generator_training import TUNED_RATE, GeneratorTrainer, train_generator
from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training import Checkpoints

pytest.importorskip("accelerate")
FEW = GeneratorOptions(steps=6, batch_size=8, learning_rate=1e-2)
SAID = [([1, 2], "more horror please", 3), ([4], "drama", 5)]
Tuned = Callable[[str], RequestMaskModel]


@pytest.fixture
def tuned(make_sasrec: Callable[..., SASRec], hashing: Callable[..., RequestMaskConfig], encoder_folder: Path) -> Tuned:
    def make(regime: str) -> RequestMaskModel:
        torch.manual_seed(0)
        own = {"encoder": "transformers", "encoder_options": {"model_name_or_path": str(encoder_folder)}}
        return inject_request_masks(make_sasrec(), hashing(encoder_tuning=regime, **own))

    return make


@pytest.mark.parametrize("stated", [(), SAID])
@pytest.mark.parametrize(("regime", "count"), [("last", 16), ("all", 37)])
def test_each_tuned_tensor_moves(
    tuned: Tuned, data: tuple[Catalogue, Split], tmp_path: Path, regime: str, count: int, stated: list[Any]
) -> None:
    masks = tuned(regime)
    before = {name: value.detach().clone() for name, value in masks.request_mask_encoder.named_parameters()}
    frozen = {name: value.clone() for name, value in masks.encoder().encoder.module.state_dict().items()}  # type: ignore[attr-defined]
    train_generator(masks, *data, FEW, progress=False, stated=stated)
    after = dict(masks.request_mask_encoder.named_parameters())
    assert len(before) == count
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []
    assert all(torch.equal(value, frozen[name]) for name, value in masks.encoder().encoder.module.state_dict().items())  # type: ignore[attr-defined]
    masks.save_pretrained(tmp_path)
    again = tuned(regime)
    again.hotswap_adapter(tmp_path)
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(again(ids, request="less horror"), masks(ids, request="less horror"))
    for name, value in again.request_mask_encoder.named_parameters():
        assert torch.equal(value, after[name])


def test_a_tuned_encoder_learns_slowly(tuned: Tuned, data: tuple[Catalogue, Split], monkeypatch: Any) -> None:
    made: list[torch.optim.Optimizer] = []
    make = GeneratorTrainer.create_optimizer
    monkeypatch.setattr(GeneratorTrainer, "create_optimizer", lambda *given: made.append(make(*given)) or made[-1])
    masks = tuned("last")
    train_generator(masks, *data, FEW, progress=False)
    rates = {id(own): group["initial_lr"] for group in made[-1].param_groups for own in group["params"]}
    assert {rates[id(own)] for own in masks.request_mask_encoder.parameters()} == {TUNED_RATE * FEW.learning_rate}
    assert {rates[id(own)] for own in masks.generator.parameters() if own.requires_grad} == {FEW.learning_rate}


def test_it_is_resumed(tuned: Tuned, data: tuple[Catalogue, Split], tmp_path: Path, monkeypatch: Any) -> None:
    whole, stopped = tuned("last"), tuned("last")
    train_generator(whole, *data, FEW, progress=False, stated=SAID)
    loss, calls = GeneratorTrainer.compute_loss, []

    def failing(*given: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(*given, **named)

    monkeypatch.setattr(GeneratorTrainer, "compute_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train_generator(stopped, *data, FEW, 0, False, Checkpoints(tmp_path, every=2), stated=SAID)
    resumed, kept = tuned("last"), Checkpoints(tmp_path, every=2, resume=True)
    with pytest.raises(ConfigError, match="requests: found"):
        train_generator(resumed, *data, FEW, 0, False, kept, stated=SAID[:1])
    train_generator(resumed, *data, FEW, 0, False, kept, stated=SAID)
    pairs = zip(whole.request_mask_encoder.parameters(), resumed.request_mask_encoder.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"encoder": "catalogue"}, EncoderError, r"encoder_tuning='last': the request encoder 'catalogue\S*' cannot"),
        ({"encoder": "hashing"}, EncoderError, "encoder_tuning='last': the request encoder 'hashing' cannot be tuned"),
        ({"encoder": "hashing", "encoder_tuning": "some"}, ConfigError, "encoder_tuning must be"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_training(
    masks: dict[str, Any], error: type[Exception], message: str, stated: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained although it cannot work")

    monkeypatch.setattr("cramer_peft.training.ResumableTrainer.train", never)
    options = TrainOptions(str(stated), tmp_path / "out", config={"encoder_tuning": "last", **masks}, progress=False)
    with pytest.raises(error, match=message):
        train_recommender(options, say=lambda _: None)


def test_a_whole_recommender(stated: Path, tmp_path: Path, encoder_folder: Path) -> None:
    own = {"encoder": "transformers", "encoder_options": {"model_name_or_path": str(encoder_folder)}}
    config = {**own, "encoder_tuning": "all"}
    options = TrainOptions(str(stated), tmp_path / "out", config=config, epochs=1, generator=FEW, progress=False)
    masks = train_recommender(options, say=lambda _: None).recommender.masks
    frozen = masks.encoder().encoder.encode(["more horror"])
    assert not torch.equal(masks.adapter().tuned(["more horror"]), frozen)  # type: ignore[misc]
    saved = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert sum("request_mask_encoder" in name for name in saved) == 37
