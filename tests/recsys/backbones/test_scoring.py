import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import BACKBONES, load_backbone, make_backbone
from cramer_peft.recsys.backbones.scoring import set_earlier_bias
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import item_embeddings

EARLIER = pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
BIAS = 8.0  # that earlier versions gave all items


def embeddings(model: Any) -> Tensor:
    found = item_embeddings(model)
    assert found is not None
    return found.clone()


def untrained(name: str) -> Any:
    torch.manual_seed(0)
    return make_backbone(name, 40, max_length=8, hidden_size=16).eval().requires_grad_(False)


def of_an_earlier_version(name: str, folder: Path, catalogue: Catalogue, bias: Any = BIAS) -> Any:
    """The same backbone from a folder as earlier versions wrote it."""
    untrained(name).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head_bias": bias}))
    return load_backbone(folder, catalogue)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec"])
def test_a_new_backbone_has_no_bias_for_all_items(name: str, tmp_path: Path) -> None:
    model = untrained(name)
    model.save_pretrained(tmp_path)
    assert "head_bias" not in json.loads((tmp_path / "config.json").read_text())
    bias = model.cls.predictions.bias if name == "bert4rec" else model.head.bias
    assert bias is None or not bool(bias.any())


@EARLIER
@torch.no_grad()
def test_the_bias_of_earlier_versions_is_no_parameter(
    name: str, item_ids: Tensor, tmp_path: Path, catalogue: Catalogue
) -> None:
    plain, biased = untrained(name), of_an_earlier_version(name, tmp_path, catalogue)
    assert plain.head.bias is None
    assert list(biased.state_dict()) == list(plain.state_dict())
    assert [key for key, _ in biased.named_parameters()] == [key for key, _ in plain.named_parameters()]
    torch.testing.assert_close(biased(item_ids), plain(item_ids) + BIAS)
    assert torch.equal(copy.deepcopy(biased)(item_ids), biased(item_ids))
    some = torch.tensor([3, 0, 30])
    torch.testing.assert_close(biased(item_ids, items=some), biased(item_ids)[:, some])
    biased.save_pretrained(tmp_path / "again")
    assert torch.equal(load_backbone(tmp_path / "again", catalogue)(item_ids), biased(item_ids))


@EARLIER
@torch.no_grad()
def test_gates_of_earlier_versions_multiply_the_bias(
    name: str, item_ids: Tensor, tmp_path: Path, catalogue: Catalogue
) -> None:
    """Scores are r * (W (c * x) + 8), with the gates r of the items and c of the states."""
    model = of_an_earlier_version(name, tmp_path, catalogue)
    states = model.states(item_ids)[torch.arange(3), (item_ids > 0).sum(1) - 1]
    config = RequestMaskConfig(target_modules=["head"], gate="signed", encoder="hashing", init_weights=False)
    masks = inject_request_masks(model, config)
    texts = ["more horror", "no comedy", "drama"]
    mask = masks.generator.build(masks.generator(masks.encode(texts)), None, None, False)["head"]
    r, c = mask.row, mask.column  # type: ignore[attr-defined]
    found = masks(item_ids, request=texts)
    torch.testing.assert_close(found, (r * ((c * states) @ model.head.weight.T + BIAS))[:, 1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_bias_of_an_earlier_bert4rec_is_in_its_weights(
    item_ids: Tensor, tmp_path: Path, catalogue: Catalogue
) -> None:
    loaded, plain = of_an_earlier_version("bert4rec", tmp_path, catalogue), untrained("bert4rec")
    assert torch.equal(loaded(item_ids), plain(item_ids))


@EARLIER
def test_a_backbone_from_before_the_bias(name: str, item_ids: Tensor, tmp_path: Path, catalogue: Catalogue) -> None:
    found = of_an_earlier_version(name, tmp_path, catalogue, bias=0.0)
    assert found.head.bias is None
    assert torch.equal(found(item_ids), untrained(name)(item_ids))


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("found", ["8", True, float("nan")])
def test_a_bias_that_is_no_number(name: str, found: Any, tmp_path: Path, catalogue: Catalogue) -> None:
    with pytest.raises(DataError, match=r"head_bias|NaN"):
        of_an_earlier_version(name, tmp_path, catalogue, found)


@pytest.mark.parametrize("value", ["8", True, float("inf")])
def test_a_bias_that_is_no_finite_number(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        set_earlier_bias(torch.nn.Linear(4, 5, bias=False), value)


@pytest.mark.parametrize("name", sorted({*BACKBONES} - {"replay-sasrec"}))
@torch.no_grad()
def test_appended_items(name: str, item_ids: Tensor, tmp_path: Path, catalogue: Catalogue) -> None:
    model, vectors = untrained(name), torch.randn(3, 16)
    before, items = model(item_ids), embeddings(model)
    model.append_items(vectors)
    found = model(item_ids)
    assert (model.num_items, found.shape) == (43, (3, 43))
    assert torch.equal(embeddings(model)[:40], items)
    # A product with more columns may round otherwise, by the processor.
    torch.testing.assert_close(found[:, :40], before, rtol=1e-6, atol=1e-7)
    assert name != "bert4rec" or model.mask_token == 44
    history = torch.tensor([[42, 3, 0]])
    assert not torch.equal(model(history), model(torch.tensor([[41, 3, 0]])))  # new items can be read, too
    model.save_pretrained(tmp_path)
    again = BACKBONES[name].from_pretrained(tmp_path).eval().requires_grad_(False)
    assert torch.equal(again(item_ids), found)


@EARLIER
@torch.no_grad()
def test_appended_items_have_the_bias_of_earlier_versions(
    name: str, item_ids: Tensor, tmp_path: Path, catalogue: Catalogue
) -> None:
    model, plain = of_an_earlier_version(name, tmp_path, catalogue), untrained(name)
    for one in (model, plain):
        one.append_items(torch.ones(2, 16))
    torch.testing.assert_close(model(item_ids), plain(item_ids) + BIAS)
