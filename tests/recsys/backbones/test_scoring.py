import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import (
    BACKBONES,
    BERT4Rec,
    load_backbone,
    make_backbone,
    set_constant_bias,
)
from cramer_peft.recsys.backbones.backbone import HEAD_BIAS
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.training.backbone_training import (
    BackboneOptions,
    fit_backbone,
)

BIASED = pytest.mark.parametrize("name", ["sasrec", "gru4rec"])


def with_bias(name: str, value: float) -> Any:
    torch.manual_seed(0)
    return make_backbone(name, 40, max_length=8, hidden_size=16, head_bias=value).eval()


@BIASED
@torch.no_grad()
def test_all_items_share_one_bias_that_is_no_parameter(name: str, item_ids: Tensor) -> None:
    plain, biased = with_bias(name, 0.0), with_bias(name, HEAD_BIAS)
    assert plain.head.bias is None
    assert list(biased.state_dict()) == list(plain.state_dict())
    assert [key for key, _ in biased.named_parameters()] == [key for key, _ in plain.named_parameters()]
    torch.testing.assert_close(biased(item_ids), plain(item_ids) + HEAD_BIAS)
    some = torch.tensor([3, 0, 30])
    torch.testing.assert_close(biased(item_ids, items=some), biased(item_ids)[:, some])


@BIASED
@torch.no_grad()
def test_row_gates_add_where_there_is_a_bias(name: str, item_ids: Tensor) -> None:
    """Items whose score is 0 cannot be moved by a factor alone."""
    moved = []
    for value in (0.0, HEAD_BIAS):
        model = with_bias(name, value)
        model.head.weight[5] = 0
        config = RequestMaskConfig(target_modules=["head"], encoder="hashing", init_weights=False)
        masks = inject_request_masks(model, config)
        before, after = masks(item_ids, request=None), masks(item_ids, request="more horror")
        moved.append(float((after - before)[:, 4].abs().max()))
    assert moved[0] == 0
    assert moved[1] > 0.01


@BIASED
@torch.no_grad()
def test_the_bias_of_all_items_comes_from_the_configuration(name: str, item_ids: Tensor, tmp_path: Path) -> None:
    biased, plain = with_bias(name, HEAD_BIAS), with_bias(name, 0.0)
    biased.save_pretrained(tmp_path)
    loaded = BACKBONES[name].from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(item_ids), biased(item_ids))
    assert torch.equal(copy.deepcopy(loaded)(item_ids), biased(item_ids))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings.pop("head_bias") == HEAD_BIAS
    (tmp_path / "config.json").write_text(json.dumps(settings))  # as before there was one
    assert torch.equal(BACKBONES[name].from_pretrained(tmp_path).eval()(item_ids), plain(item_ids))


@torch.no_grad()
def test_bert4rec_learns_its_bias_from_that_of_all_items_on(item_ids: Tensor, tmp_path: Path) -> None:
    plain, biased = with_bias("bert4rec", 0.0), with_bias("bert4rec", HEAD_BIAS)
    torch.testing.assert_close(biased(item_ids), plain(item_ids) + HEAD_BIAS)
    assert biased.item_bias is biased.cls.predictions.decoder.bias
    biased.item_bias[3] += 1
    biased.save_pretrained(tmp_path)
    loaded = BERT4Rec.from_pretrained(tmp_path)
    assert torch.equal(loaded.item_bias, biased.item_bias)
    assert loaded.head_bias == HEAD_BIAS
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["head_bias"]  # as before there was one
    (tmp_path / "config.json").write_text(json.dumps(settings))
    earlier = BERT4Rec.from_pretrained(tmp_path)
    assert torch.equal(earlier.item_bias, biased.item_bias)
    assert earlier.head_bias == 0


def test_the_bias_of_all_items_is_left_out_of_bert4recs_training(split: Split) -> None:
    pytest.importorskip("accelerate")
    plain, biased = with_bias("bert4rec", 0.0), with_bias("bert4rec", HEAD_BIAS)
    for model in (plain, biased):
        fit_backbone(model, split, BackboneOptions(epochs=2, max_length=8), seed=0)
    learned = {name: weight for name, weight in plain.named_parameters() if "bias" not in name or "bert" in name}
    for name, weight in biased.named_parameters():
        if name in learned:
            assert torch.equal(weight, learned[name]), name
    assert float(plain.item_bias.detach().abs().max()) > 0
    torch.testing.assert_close(biased.item_bias, plain.item_bias + HEAD_BIAS, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("found", ["8", True, "NaN"])
def test_a_bias_that_is_no_number(name: str, found: Any, tmp_path: Path, catalogue: Catalogue) -> None:
    with_bias(name, 1.0).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    value = found if found == "NaN" else json.dumps(found)
    (tmp_path / "config.json").write_text(text.replace('"head_bias": 1.0', f'"head_bias": {value}'))
    with pytest.raises(DataError, match=r"head_bias|NaN"):
        load_backbone(tmp_path, catalogue)


def test_a_bias_of_its_own_is_not_lost() -> None:
    with pytest.raises(ValueError, match="a bias of its own"):
        set_constant_bias(torch.nn.Linear(4, 5), 1.0)


@BIASED
def test_a_backbone_is_trained_without_the_bias_of_all_items(
    name: str, catalogue: Catalogue, split: Split, two_epochs: BackboneOptions
) -> None:
    pytest.importorskip("accelerate")
    biased, plain = with_bias(name, HEAD_BIAS), with_bias(name, 0.0)
    for model in (biased, plain):
        fit_backbone(model, split, two_epochs, progress=False)
    assert torch.equal(biased.head.weight, plain.head.weight)
    assert torch.equal(biased.head.bias, torch.full((41,), HEAD_BIAS))
    assert plain.head.bias is None
