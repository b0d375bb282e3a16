from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.encoders import CachedEncoder, HashingEncoder, WordLlamaEncoder
from cramer_peft.errors import EncoderError
from cramer_peft.recsys.backbones import BACKBONES, SASRec, config_for, make_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.text_encoders import (
    DEFAULT_ENCODER,
    item_embeddings,
    request_encoder,
    text_encoder,
    without_cache,
)

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")


@pytest.mark.parametrize("name", [None, DEFAULT_ENCODER])
def test_the_default_knows_the_catalogue(name: str | None, catalogue: Catalogue, sasrec: SASRec) -> None:
    pytest.importorskip("wordllama")
    made = request_encoder(name, catalogue, sasrec)
    assert isinstance(made, CachedEncoder)
    inner = without_cache(made)
    assert isinstance(inner, CatalogueEncoder)
    assert made.name == DEFAULT_ENCODER == "catalogue"
    embeddings = sasrec.bert.embeddings.word_embeddings.weight[1:]
    expected = CatalogueEncoder(catalogue, embeddings, inner.reader)
    assert torch.equal(inner.features, expected.features)
    assert isinstance(text_encoder(made), WordLlamaEncoder)


def test_others_go_by_their_names(catalogue: Catalogue, sasrec: SASRec) -> None:
    made = request_encoder("hashing", catalogue, sasrec, {"dim": 12})
    assert isinstance(without_cache(made), HashingEncoder)
    assert made.dim == 12
    assert text_encoder(made) is made
    with pytest.raises(EncoderError, match="unknown request encoder 'nonsense'"):
        request_encoder("nonsense", catalogue, sasrec)


def test_behind_the_caches_of_a_handle_too(catalogue: Catalogue, sasrec: SASRec) -> None:
    pytest.importorskip("wordllama")
    made = request_encoder(None, catalogue, sasrec)
    masks = inject_request_masks(sasrec, config_for(sasrec, RequestMaskConfig()), encoder=made)
    assert without_cache(masks.encoder()) is without_cache(made)
    assert isinstance(text_encoder(masks.encoder()), WordLlamaEncoder)
    assert masks.peft_config["default"].encoder == DEFAULT_ENCODER
    assert masks.peft_config["default"].request_dim == made.dim


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_embeddings_are_one_row_for_each_item(kind: str) -> None:
    if kind == "replay-sasrec":
        pytest.importorskip("replay", reason="needs replay-rec[torch]")
    backbone = make_backbone(kind, 40, max_length=8, hidden_size=16)
    found = item_embeddings(backbone)
    assert found is None or found.shape == (40, 16)
    assert found is not None or kind == "replay-sasrec"


def test_a_row_is_that_of_its_item(sasrec: SASRec) -> None:
    found = item_embeddings(sasrec)
    assert found is not None
    assert not found.requires_grad
    assert torch.equal(found[7], sasrec.get_input_embeddings()(torch.tensor(8)))  # 0 is the padding


class Shapeless(nn.Module):
    num_items = 4

    def __init__(self, items: Any) -> None:
        super().__init__()
        self.items = items


@pytest.mark.parametrize("items", [None, nn.Identity(), nn.Embedding(4, 3), nn.Conv1d(9, 2, 3)])
def test_without_a_table_there_are_no_embeddings(items: Any) -> None:
    assert item_embeddings(Shapeless(items)) is None


def test_a_table_called_items_is_found(make_sasrec: Callable[..., SASRec]) -> None:
    table = nn.Embedding(6, 3)  # the padding, four items, a mask token
    found = item_embeddings(Shapeless(table))
    assert found is not None
    assert torch.equal(found, table.weight[1:5])
