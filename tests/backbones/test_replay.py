"""RePlay's SasRec, of ``replay.nn`` and of ``replay.models.nn``, and its Bert4Rec."""

import dataclasses

import pytest
import torch
from checks import (
    FIRST,
    MOVED,
    OTHERS,
    Backbone,
    BackboneContract,
    Batch,
    adapter_of,
    check_own_backbone,
    numbered_catalogue,
)
from torch import Tensor, nn

from cramer_peft.errors import EffectError

pytest.importorskip("replay", reason="needs replay-rec[torch]; tests/backbones/environments.py installs it apart")

from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential import Bert4Rec
from replay.models.nn.sequential.sasrec import SasRec as LightningSasRec
from replay.nn.sequential import SasRec

ITEMS, LENGTH, WIDTH = 20, 6, 16
SIZES = {"block_count": 2, "head_count": 2, "hidden_size": WIDTH, "max_seq_len": LENGTH}


def schema() -> TensorSchema:
    item_id = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=WIDTH,
        padding_value=ITEMS,
        cardinality=ITEMS,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    return TensorSchema([item_id])


def sasrec() -> nn.Module:
    return SasRec.from_params(schema(), embedding_dim=WIDTH, num_heads=2, num_blocks=2, max_sequence_length=LENGTH)


def lightning_sasrec() -> nn.Module:
    return LightningSasRec(schema(), **SIZES)


def bert4rec() -> nn.Module:
    return Bert4Rec(schema(), **SIZES)


def histories() -> Batch:
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4, [0] * 3 + [1] * 3]).bool()
    ids = torch.randint(ITEMS, (3, LENGTH), generator=torch.Generator().manual_seed(0)).masked_fill(~mask, ITEMS)
    return {"feature_tensors": {"item_id": ids}, "padding_mask": mask}


def masked_histories() -> Batch:
    batch = histories()
    ids, padding = batch["feature_tensors"]["item_id"], batch["padding_mask"]
    tokens = padding.clone()
    tokens[:, -1] = False  # what follows is asked at a <MASK> token
    return {"inputs": {"item_id": ids.masked_fill(~tokens, 0)}, "pad_mask": padding, "token_mask": tokens}


def scores(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch)["logits"]


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """SasRec's forward gives a loss in train mode."""
    return model.body(**batch)[:, -1]


def predicted_by_sasrec(model: nn.Module, batch: Batch) -> Tensor:
    return model.predict({"feature_tensor": batch["feature_tensors"], "padding_mask": batch["padding_mask"]})


def predicted_by_bert4rec(model: nn.Module, batch: Batch) -> Tensor:
    return model.predict(dict(batch))


PACKAGE = "replay-rec"
SASREC_MODULES = r".*\.attention_layers\.\d+|.*\.conv[12]|.*\.item_emb|.*\.item_id\.emb"
BACKBONES = [
    Backbone(
        PACKAGE,
        "SasRec",
        sasrec,
        histories,
        scores,
        SASREC_MODULES,
        train_score=hidden_states,
    ),
    Backbone(
        PACKAGE,
        "SasRec (Lightning)",
        lightning_sasrec,
        histories,
        predicted_by_sasrec,
        SASREC_MODULES,
    ),
    Backbone(
        PACKAGE,
        "Bert4Rec",
        bert4rec,
        masked_histories,
        predicted_by_bert4rec,
        ["attention", "w_1", "w_2"],
        frozen_rows_exact=False,
    ),
]


class TestReplay(BackboneContract):
    pass


def test_check_effect_names_the_head_that_bert4rec_reads_directly() -> None:
    backbone = dataclasses.replace(BACKBONES[-1], target_modules=["w_1", "linear"])
    model = backbone.make()
    masks = backbone.adapt(model, "scale")
    with pytest.raises(EffectError, match=r"_model\._head\.linear' in eval mode: is never called") as caught:
        masks.check_effect(call=lambda: backbone.score(model, backbone.batch()))
    assert "w_1" not in str(caught.value)


def test_the_loss_of_sasrec_follows_requests() -> None:
    backbone = BACKBONES[0]
    model = backbone.make()
    masks = backbone.adapt(model, "low_rank")
    model.train()
    batch = histories()
    labels = {"positive_labels": batch["feature_tensors"]["item_id"].roll(-1, 1)[..., None]}
    labels["target_padding_mask"] = labels["positive_labels"] != ITEMS

    def loss(requests: list[str | None]) -> Tensor:
        torch.manual_seed(1)
        return masks(**batch, **labels, request=requests)["loss"]

    first = loss(FIRST)
    assert (loss(OTHERS) - first).abs() > MOVED
    first.backward()
    assert masks.generator.head.weight.grad.abs().sum() > 0


def test_the_adapter_of_the_docs() -> None:
    torch.manual_seed(0)
    model = sasrec().eval()

    def expected(history: list[int]) -> Tensor:
        """The scores of RePlay's own inference, of a history without padding on the right."""
        ids = torch.tensor([[ITEMS] * (LENGTH - len(history)) + history])
        with torch.no_grad():
            return model(feature_tensors={"item_id": ids}, padding_mask=ids != ITEMS)["logits"][0]

    backbone = adapter_of("replay", SasRec=SasRec)(model, ITEMS, LENGTH)
    check_own_backbone(backbone, numbered_catalogue(range(ITEMS)), expected)
