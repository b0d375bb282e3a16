"""The models of the speed benchmark, with random weights, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from benchmark.speed.device import moved
from cramer_peft.errors import DataError, require
from cramer_peft.recsys.backbones import SASRec

BERT_TARGETS = r".*\.(output|intermediate)\.dense"  # W_O and both matrices of the feed-forward block


@dataclass(frozen=True)
class SpeedModel:
    """One model to time.

    Attributes:
        name: The name in the report.
        module: The model, in eval mode, with random weights.
        make_inputs: Number of rows → keyword arguments of one call.
        targets: Regular expression of the masked modules: feed-forward blocks, and W_O if it is a linear layer.
        inward: Regular expression of those among them whose input IA³ scales, not their output.
        length: Items or tokens in each row.
    """

    name: str
    module: nn.Module
    make_inputs: Callable[[int], dict[str, Any]]
    targets: str
    inward: str
    length: int

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> SpeedModel:
        """Return the model on a device. Inputs are still made on the CPU, so that they are the same, and then moved."""
        make = self.make_inputs
        return replace(self, module=self.module.to(device), make_inputs=lambda rows: moved(make(rows), device))


class BERT4Rec(nn.Module):
    """BERT4Rec: a transformer that sees both ways, read at a mask token after the history (Sun et al. 2019).

    Args:
        num_items: Number of items.
        hidden_size: Width; the inner layers are four times as wide.
        length: Longest history, the mask token included.
    """

    def __init__(self, num_items: int, hidden_size: int, length: int) -> None:
        super().__init__()
        self.mask_token = num_items + 1
        config = BertConfig(
            vocab_size=num_items + 2,
            hidden_size=hidden_size,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=length,
            type_vocab_size=1,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return scores (rows, items) at the last position of ``item_ids`` (rows, length) int64."""
        hidden = self.bert(item_ids, attention_mask=item_ids != 0).last_hidden_state[:, -1]
        scores: Tensor = hidden @ self.bert.embeddings.word_embeddings.weight[1:-1].T
        return scores


def make_model(name: str, items: int = 1682, length: int = 50) -> SpeedModel:
    """Return a model by name.

    Args:
        name: One of :func:`model_names`.
        items: Size of the recommenders' catalogue.
        length: Items in each history.

    Raises:
        DataError: If there is no such model.
        MissingExtraError: If its package is not installed.
    """
    if name not in _MODELS:
        raise DataError(f"model: found {name!r}, expected one of {model_names()}.")
    make, width = _MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(name, items, width, length)
    model.module.eval().requires_grad_(False)
    return model


def model_names() -> list[str]:
    """Return the names of all models, small ones first."""
    return list(_MODELS)


def _sasrec(name: str, items: int, width: int, length: int) -> SpeedModel:
    module = SASRec(SASRec.configure(items, length, hidden_size=width))
    return SpeedModel(name, module, _item_ids(items, length), BERT_TARGETS, r".*layer\.\d+\.output\.dense", length)


def _bert4rec(name: str, items: int, width: int, length: int) -> SpeedModel:
    module = BERT4Rec(items, width, length)
    histories = _item_ids(items, length)

    def inputs(rows: int) -> dict[str, Any]:
        ids = histories(rows)["item_ids"]
        ids[:, -1] = module.mask_token
        return {"item_ids": ids}

    return SpeedModel(name, module, inputs, BERT_TARGETS, r".*layer\.\d+\.output\.dense", length)


def _replay(name: str, items: int, width: int, length: int) -> SpeedModel:
    data, nets = require("replay.data", extra="replay"), require("replay.data.nn", extra="replay")
    sequential = require("replay.nn.sequential", extra="replay")
    feature = nets.TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=data.FeatureType.CATEGORICAL,
        embedding_dim=width,
        padding_value=items,
        cardinality=items,
        feature_hint=data.FeatureHint.ITEM_ID,
        feature_sources=[nets.TensorFeatureSource(data.FeatureSource.INTERACTIONS, "item_id")],
    )
    module = sequential.SasRec.from_params(
        nets.TensorSchema([feature]), embedding_dim=width, num_heads=2, num_blocks=2, max_sequence_length=length
    )

    def inputs(rows: int) -> dict[str, Any]:
        ids = torch.randint(0, items, (rows, length), generator=torch.Generator().manual_seed(rows))
        return {"feature_tensors": {"item_id": ids}, "padding_mask": torch.ones_like(ids, dtype=torch.bool)}

    # Its attention is an nn.MultiheadAttention, and its feed-forward blocks are convolutions of width 1.
    return SpeedModel(name, module, inputs, r".*\.(conv1|conv2)", r".*\.conv2", length)


def _decoder(name: str, items: int, width: int, length: int) -> SpeedModel:
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=10,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=max(length, 32),
        tie_word_embeddings=True,
        use_cache=False,
    )

    def inputs(rows: int) -> dict[str, Any]:
        ids = torch.randint(0, 32_000, (rows, length), generator=torch.Generator().manual_seed(rows))
        return {"input_ids": ids, "logits_to_keep": 1}

    targets = r".*\.(o_proj|up_proj|gate_proj|down_proj)"
    return SpeedModel(name, LlamaForCausalLM(config), inputs, targets, r".*\.down_proj", length)


def _item_ids(items: int, length: int) -> Callable[[int], dict[str, Any]]:
    def inputs(rows: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(rows)
        return {"item_ids": torch.randint(1, items + 1, (rows, length), generator=generator)}

    return inputs


_MODELS: dict[str, tuple[Callable[[str, int, int, int], SpeedModel], int]] = {
    "sasrec-64": (_sasrec, 64),
    "sasrec-256": (_sasrec, 256),
    "bert4rec-64": (_bert4rec, 64),
    "bert4rec-256": (_bert4rec, 256),
    "replay-sasrec-64": (_replay, 64),
    "decoder": (_decoder, 640),
}
