from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import BaseModelMismatchError, DataError, RequestError
from cramer_peft.recsys.backbones import config_for, make_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import describe_items, item_layers, mask_backbone
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, item_embeddings, without_cache
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.request_encoders import request_encoder

pytest.importorskip("wordllama")
NAMES = ["bert4rec", "gru4rec", "sasrec"]
REQUESTS = ["more horror please", None, "no comedy"]
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}}


def features_of(masks: RequestMaskModel) -> Tensor:
    (keys,) = masks.generator.row_keys.values()
    assert keys is not None
    assert keys.features is not None
    return keys.features


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_backbone_is_masked_and_its_items_are_described(
    name: str, make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    model = make_untrained(name)
    before, encoder = model(item_ids), request_encoder(None, catalogue, model)
    masks = mask_backbone(model, catalogue, RequestMaskConfig(init_weights=False), encoder)
    hearing = without_cache(encoder)
    assert isinstance(hearing, HearingEncoder)
    assert torch.equal(features_of(masks), hearing.features)
    config = masks.peft_config["default"]
    assert config.masked_modules == {":forward": []}
    width = hearing.features.shape[1]
    assert config.request_sides == {"wanted": width, "unwanted": width}
    found = masks(item_ids, request=REQUESTS)
    assert torch.equal(found[1], before[1])
    assert (found - before)[[0, 2]].abs().amax(1).min() > 1e-3
    masks.unload()
    assert torch.equal(model(item_ids), before)


@pytest.mark.parametrize(("name", "layer"), [("sasrec", "head"), ("bert4rec", "cls.predictions.decoder")])
@torch.no_grad()
def test_the_layer_that_scores_items_has_rows_beside_theirs(
    name: str, layer: str, make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    model = make_untrained(name)
    before, config = model(item_ids), RequestMaskConfig(row_features=[layer], init_weights=False, **HASHING)
    masks = mask_backbone(model, catalogue, config)
    features = CatalogueEncoder(catalogue, item_embeddings(model)).features
    assert torch.equal(features_of(masks)[1:41], features)
    assert not bool(features_of(masks)[0].any())
    found = masks(item_ids, request=REQUESTS)
    assert torch.equal(found[1], before[1])
    assert (found - before)[[0, 2]].abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_nothing_changes_before_training(
    make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    model = make_untrained("sasrec")
    before = model(item_ids)
    masks = mask_backbone(model, catalogue, encoder=request_encoder(None, catalogue, model))
    assert torch.equal(masks(item_ids, request=REQUESTS), before)


def test_the_number_of_parameters_does_not_grow_with_the_items(catalogue: Catalogue) -> None:
    counts = set()
    for items in (40, 400):
        numbers = tuple(map(str, range(items)))
        flags = torch.arange(items)[:, None] % 4 == torch.arange(4)
        made = Catalogue(numbers, numbers, ("Action", "Comedy", "Drama", "Horror"), flags)
        model = make_backbone("sasrec", items, max_length=8).requires_grad_(False)
        masks = mask_backbone(model, made, encoder=request_encoder(None, made, model))
        counts.add(masks.get_nb_trainable_parameters()[0])
    assert len(counts) == 1
    assert counts.pop() < 200_000


@pytest.mark.parametrize("encoder", [HASHING, {"encoder": "wordllama", "encoder_options": None}])
@torch.no_grad()
def test_other_encoders_have_items_described_by_the_catalogue_too(
    encoder: dict[str, Any], make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    model = make_untrained("sasrec")
    masks = mask_backbone(model, catalogue, RequestMaskConfig(init_weights=False, **encoder))
    assert torch.equal(features_of(masks), CatalogueEncoder(catalogue, item_embeddings(model)).features)
    assert masks.peft_config["default"].request_sides is None  # a request is no mean of items
    found = masks(item_ids, request=REQUESTS)
    assert (found - masks(item_ids, request=None))[[0, 2]].abs().amax(1).min() > 1e-3


def test_vectors_alone_need_no_encoder(
    make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    config = RequestMaskConfig(init_weights=False, encoder=None, request_dim=5)
    masks = mask_backbone(make_untrained("gru4rec"), catalogue, config)
    with torch.no_grad():
        found = masks(item_ids, request=torch.randn(3, 5))
        assert not torch.allclose(found, masks(item_ids, request=None))


def test_masks_inside_describe_nothing(
    make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    masks = mask_backbone(make_untrained("sasrec"), catalogue, RequestMaskConfig.paper(**HASHING))
    assert masks.generator.row_keys == {}
    describe_items(masks, catalogue)
    assert masks(item_ids, request=REQUESTS).shape == (3, 40)


def test_another_catalogue_leaves_the_backbone_as_it_was(
    make_untrained: Callable[[str], Any], item_ids: Tensor
) -> None:
    model = make_untrained("sasrec")
    before, keys = model(item_ids), list(model.state_dict())
    small = Catalogue(("a", "b"), ("A", "B"), ("x",), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(DataError, match="one finite row for each of the 2 items"):
        mask_backbone(model, small, RequestMaskConfig(**HASHING))
    assert torch.equal(model(item_ids), before)
    assert list(model.state_dict()) == keys
    assert "forward" not in vars(model)


def test_items_are_described_once_and_other_descriptions_are_refused(
    make_untrained: Callable[[str], Any], catalogue: Catalogue, item_ids: Tensor
) -> None:
    model = make_untrained("sasrec")
    masks = inject_request_masks(model, config_for(model, RequestMaskConfig(**HASHING)))
    with pytest.raises(RequestError, match="row features are not set"):
        masks(item_ids, request="more horror")
    describe_items(masks, catalogue)
    described = features_of(masks)
    describe_items(masks, catalogue)
    assert torch.equal(features_of(masks), described)
    turned = Catalogue(
        catalogue.item_ids, catalogue.titles[::-1], catalogue.attributes, catalogue.item_attributes.flip(0)
    )
    with pytest.raises(BaseModelMismatchError, match="row features"):
        describe_items(masks, turned)
    assert torch.equal(features_of(masks), described)
    describe_items(masks, turned, check=False)
    assert not torch.equal(features_of(masks), described)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"target_modules": ["head"]}, ["head"]),
        ({"row_features": ["head"]}, ["head"]),
        ({"target_modules": ["intermediate.dense", "output.dense"]}, []),  # 64 wide, more than there are items
        ({"target_modules": ["word_embeddings"]}, []),  # its gates are on numbers of an embedding
        ({"target_outputs": {"": {"features": 40}}}, [":forward"]),
        ({}, []),
    ],
)
def test_what_has_a_mask_for_each_item(
    config: dict[str, Any], expected: list[str], make_untrained: Callable[[str], Any], catalogue: Catalogue
) -> None:
    masks = mask_backbone(make_untrained("sasrec"), catalogue, RequestMaskConfig(**HASHING, **config))
    assert item_layers(masks) == expected
