"""GRU4Rec: a recurrent layer over the items of a history."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cramer_peft.recsys.backbones.backbone import (
    HEAD_BIAS,
    PADDING,
    StoredBackbone,
    item_scores,
    last_positions,
    set_constant_bias,
)
from cramer_peft.recsys.backbones.sampling import sampled_loss


class GRU4Rec(StoredBackbone):
    """GRU4Rec in RecBole 1.2.1's form (Tan et al. 2016): item embeddings, a GRU, a dense layer, products with items.

    Items are numbered from 1 in its inputs; 0 pads on the right. The masks gate the scores of items, or
    the input and the output of the GRU and the dense layer: see :func:`~cramer_peft.recsys.backbones.config_for`.

    Args:
        num_items: Number of items.
        max_length: Longest history, in items.
        dropout: Of the embeddings.
        hidden_size: Width of the items; the GRU is twice as wide.
        head_bias: What the score of every item has besides its product
            (:func:`~cramer_peft.recsys.backbones.backbone.set_constant_bias`).
    """

    name: ClassVar[str] = "gru4rec"
    default_targets: ClassVar[list[str] | str | None] = ["gru", "dense"]
    head_targets: ClassVar[list[str]] = ["head"]
    head_bias: float = HEAD_BIAS  # of a model: what its settings say
    tied: ClassVar[dict[str, str]] = {"head.weight": "items.weight"}
    old_defaults: ClassVar[dict[str, float]] = {"head_bias": 0.0}

    def __init__(
        self,
        num_items: int,
        max_length: int = 50,
        dropout: float = 0.2,
        hidden_size: int = 64,
        head_bias: float = HEAD_BIAS,
    ) -> None:
        super().__init__(num_items, max_length, dropout=dropout, hidden_size=hidden_size, head_bias=head_bias)
        self.head_bias = head_bias
        self.items = nn.Embedding(num_items + 1, hidden_size, padding_idx=PADDING)
        self.negatives: int | None = None  # while it is trained on samples of the catalogue
        self.calibration: float | None = None  # of gbce, while that is the loss on samples
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden_size, 2 * hidden_size, bias=False, batch_first=True)
        self.dense = nn.Linear(2 * hidden_size, hidden_size)
        with torch.no_grad():
            nn.init.xavier_normal_(self.items.weight)
            self.items.weight[PADDING] = 0
            for weight in self.gru.parameters():
                nn.init.xavier_uniform_(weight)
        # A module of its own, tied to the embeddings, so that masks can gate the scores of items too.
        self.head = nn.Linear(hidden_size, num_items + 1, bias=False)
        self.tie()
        self.fill_buffers()

    def fill_buffers(self) -> None:
        """Set the scoring layer's bias, which all items share."""
        set_constant_bias(self.head, self.settings["head_bias"])

    def forward(
        self,
        item_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue; see :class:`~cramer_peft.recsys.backbones.Backbone`.

        With ``items``, (m,) int64 from 0, those are scored alone; masks of the scoring layer do not count then.

        With ``labels`` the loss is cross-entropy at every position, over the whole catalogue or, where ``negatives`` is
        set, on a sample of it: :func:`~cramer_peft.recsys.backbones.sampling.sampled_loss`.
        """
        last = last_positions(item_ids)
        states = self.dense(self.gru(self.dropout(self.items(item_ids)))[0])
        if labels is not None:
            known = labels >= 0
            if self.negatives is not None:
                table, targets = self.items.weight, labels[known]
                return {"loss": sampled_loss(states[known], table, targets, self.negatives, self.calibration)}
            return {"loss": nn.functional.cross_entropy(item_scores(self.head, states[known]), labels[known])}
        rows = torch.arange(len(item_ids), device=item_ids.device)
        chosen = states[rows, last] if positions is None else states[rows[:, None], positions]
        return item_scores(self.head, chosen, items)
