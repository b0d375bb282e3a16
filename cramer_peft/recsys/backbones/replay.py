"""RePlay's SasRec, a module of another package, behind the interface of our backbones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cramer_peft.errors import require
from cramer_peft.recsys.backbones.backbone import PADDING, last_positions, prefixes
from cramer_peft.recsys.backbones.stored import StoredBackbone


class ReplaySASRec(StoredBackbone):
    """RePlay's ``replay.nn.sequential.SasRec``, unchanged, as ``model``.

    It reads the last place alone, so each of ``positions`` costs a row, and has no module that scores items to mask.
    """

    name: ClassVar[str] = "replay-sasrec"
    default_targets: ClassVar[list[str] | str | None] = r".*\.attention_layers\.\d+|.*\.conv[12]"
    default_parts: ClassVar[list[str] | None] = ["out"]
    expands_positions: ClassVar[bool] = True

    def __init__(self, num_items: int, max_length: int = 50, dropout: float = 0.2, hidden_size: int = 64) -> None:
        super().__init__(num_items, max_length, dropout=dropout, hidden_size=hidden_size)
        sequential = require("replay.nn.sequential", extra="replay")
        self.model = sequential.SasRec.from_params(
            _schema(num_items, hidden_size),
            embedding_dim=hidden_size,
            num_heads=2,
            num_blocks=2,
            max_sequence_length=max_length,
            dropout=dropout,
        )

    @property
    def item_vectors(self) -> Tensor:
        """The embeddings of the items 0 … num_items - 1, (items, width)."""
        weights: Tensor = self.model.body.embedder.get_item_weights(None)
        return weights.detach()[: self.num_items]

    def forward(
        self, item_ids: Tensor, labels: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue, as a ``Backbone``; the loss is RePlay's, over the catalogue at every position."""
        if positions is not None:
            scores = self._scores(prefixes(item_ids, positions))
            return scores.reshape(*positions.shape, -1)
        if labels is None:
            return self._scores(item_ids)
        index, mask = _left(item_ids)
        following = labels.gather(1, index).masked_fill(~mask, -1)
        known = following >= 0
        loss: Tensor = self.model.forward_train(
            **self._inputs(item_ids),
            positive_labels=following.masked_fill(~known, self.num_items)[..., None],
            negative_labels=None,
            target_padding_mask=known[..., None],
        )["loss"]
        return {"loss": loss}

    def _scores(self, item_ids: Tensor) -> Tensor:
        scores: Tensor = self.model.forward_inference(**self._inputs(item_ids))["logits"]
        return scores

    def _inputs(self, item_ids: Tensor) -> dict[str, Any]:
        """Return RePlay's inputs, in which items count from 0 and ``num_items`` pads."""
        index, mask = _left(item_ids)
        ids = (item_ids.gather(1, index) - 1).masked_fill(~mask, self.num_items)
        return {"feature_tensors": {"item_id": ids}, "padding_mask": mask}


def _left(item_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding to the left: return the source of each place and which places hold items, (rows, length)."""
    length = item_ids.shape[1]
    shifted = torch.arange(length, device=item_ids.device) - (length - 1 - last_positions(item_ids))[:, None]
    return shifted.clamp(min=PADDING), shifted >= 0


def _schema(num_items: int, width: int) -> Any:
    data, tensors = require("replay.data", extra="replay"), require("replay.data.nn", extra="replay")
    item = tensors.TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=data.FeatureType.CATEGORICAL,
        embedding_dim=width,
        padding_value=num_items,
        cardinality=num_items,
        feature_hint=data.FeatureHint.ITEM_ID,
        feature_sources=[tensors.TensorFeatureSource(data.FeatureSource.INTERACTIONS, "item_id")],
    )
    return tensors.TensorSchema([item])
