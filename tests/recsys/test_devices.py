"""Where models are while they are trained and asked; on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.devices import brought_to, device_of, fastest_device
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender, evaluate_recommender
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.training import Checkpoints

pytest.importorskip("accelerate")


def test_a_model_is_where_its_parameters_are(device: str) -> None:
    model = nn.Linear(2, 2).to(device)
    assert device_of(model).type == device
    assert brought_to(model, torch.ones(1, 2)).device.type == device
    assert device_of(nn.Identity()).type == "cpu"
    assert device_of(lambda item_ids: item_ids).type == "cpu"


def test_the_fastest_device_is_the_trainers() -> None:
    assert (fastest_device().type == "cpu") == (not torch.accelerator.is_available())


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec"])
def test_backbones_are_trained_and_come_back(
    name: str, data: tuple[Catalogue, Split], one_epoch: BackboneOptions, few_steps: GeneratorOptions, device: str
) -> None:
    backbone = train_backbone(name, *data, one_epoch, progress=False)
    assert {tensor.device.type for tensor in backbone.state_dict().values()} == {"cpu"}
    torch.manual_seed(0)
    options = {"request_dim": None, "encoder": "hashing", "encoder_options": {"dim": 32}}
    masks = mask_backbone(backbone.to(device), data[0], RequestMaskConfig(**options))
    train_generator(masks, *data, few_steps, progress=False)
    assert {tensor.device.type for tensor in masks.state_dict().values()} == {device}
    item_ids = torch.tensor([[1, 2, 3], [4, 5, 0]], device=device)
    with torch.no_grad():
        frozen, asked = masks(item_ids), masks(item_ids, request=["more horror", None])
        assert torch.equal(asked[1], frozen[1])
        assert not torch.equal(asked[0], frozen[0])
        assert torch.equal(masks.unload()(item_ids), frozen)


def test_recommending(untrained_masks: RequestMaskModel, catalogue: Catalogue, device: str) -> None:
    recommender = RequestRecommender(untrained_masks, catalogue)
    expected = recommender.recommend([1, 2, 3], "more horror", k=5)
    untrained_masks.to(device)
    found = recommender.recommend([1, 2, 3], "more horror", k=5)
    assert found == expected
    assert recommender.recommend([1, 2, 3], None, k=5).items == found.frozen_items


def test_training_goes_on_with_the_devices_random_state(
    make_sasrec: Callable[..., SASRec], data: tuple[Catalogue, Split], tmp_path: Path, device: str
) -> None:
    """The paper's form draws noise on the device in each step."""
    options = replace(GeneratorOptions.paper(steps=6, batch_size=8), sparsity_weight=0.0)

    def trained(checkpoints: Checkpoints | None, stop: int | None = None) -> Tensor:
        torch.manual_seed(0)
        config = RequestMaskConfig.paper(encoder="hashing", encoder_options={"dim": 32}, drop_ratio=0.3)
        masks = inject_request_masks(make_sasrec().to(device), config)
        if stop is not None:
            layer = masks.generator.head
            calls = iter(range(stop))

            def count(*_: Any) -> None:
                if next(calls, None) is None:
                    raise InterruptedError

            handle = layer.register_forward_pre_hook(count)
            with pytest.raises(InterruptedError):
                train_generator(masks, *data, options, progress=False, checkpoints=checkpoints)
            handle.remove()
            return masks.generator.head.weight.detach()
        train_generator(masks, *data, options, progress=False, checkpoints=checkpoints)
        assert device_of(masks).type == device
        return masks.generator.head.weight.detach()

    whole = trained(None)
    trained(Checkpoints(tmp_path, every=2), stop=4)
    assert list(tmp_path.glob("checkpoint-*"))
    resumed = trained(Checkpoints(tmp_path, every=2, resume=True))
    assert torch.allclose(resumed, whole, atol=1e-6)


def test_training_and_evaluating_a_recommender(folder: Path, tmp_path: Path, few_steps: GeneratorOptions) -> None:
    encoder = {"encoder": "hashing", "encoder_options": {"dim": 32}}
    options = TrainOptions(str(folder), tmp_path, config=encoder, epochs=1, generator=few_steps, progress=False)
    trained = train_recommender(options, say=lambda line: None)
    assert device_of(trained.recommender.masks).type == "cpu"
    assert trained.tracks["truthful"].users > 0
    evaluated = evaluate_recommender(tmp_path, str(folder), "test", say=lambda line: None)
    assert evaluated["empty"].users > 0
