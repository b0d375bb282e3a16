"""GRU4Rec: a recurrent layer over a history."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cramer_peft.recsys.backbones.backbone import PADDING
from cramer_peft.recsys.backbones.item_table import append_rows
from cramer_peft.recsys.backbones.scoring import ScoredStates, set_earlier_bias
from cramer_peft.recsys.backbones.stored import StoredBackbone


class GRU4Rec(ScoredStates, StoredBackbone):
    """GRU4Rec in RecBole 1.2.1's form (Tan et al. 2016): item embeddings, a GRU, a dense layer, products with items.

    In its inputs items count from 1; 0 pads on the right. The GRU is twice as wide as the items, ``hidden_size``.
    """

    name: ClassVar[str] = "gru4rec"
    default_targets: ClassVar[list[str] | str | None] = ["gru", "dense"]
    tied: ClassVar[dict[str, str]] = {"head.weight": "items.weight"}

    def __init__(
        self,
        num_items: int,
        max_length: int = 50,
        dropout: float = 0.2,
        hidden_size: int = 64,
        head_bias: float = 0.0,  # of earlier versions
    ) -> None:
        earlier = {"head_bias": head_bias} if head_bias else {}
        super().__init__(num_items, max_length, dropout=dropout, hidden_size=hidden_size, **earlier)
        self.items = nn.Embedding(num_items + 1, hidden_size, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden_size, 2 * hidden_size, bias=False, batch_first=True)
        self.dense = nn.Linear(2 * hidden_size, hidden_size)
        with torch.no_grad():
            nn.init.xavier_normal_(self.items.weight)
            self.items.weight[PADDING] = 0
            for weight in self.gru.parameters():
                nn.init.xavier_uniform_(weight)
        # a module of its own, tied to the embeddings, so that masks can be put on it
        self.head = nn.Linear(hidden_size, num_items + 1, bias=False)
        self.tie()
        self.fill_buffers()

    def fill_buffers(self) -> None:
        """Set the bias that the scoring layer has in files of earlier versions."""
        set_earlier_bias(self.head, self.settings.get("head_bias", 0.0))

    def append_items(self, vectors: Tensor) -> None:
        """Add items after the last, in place, with these embeddings, (items, width) float."""
        append_rows(self.items, self.head, vectors)
        self.settings["num_items"] += len(vectors)

    def states(self, item_ids: Tensor) -> Tensor:
        states: Tensor = self.dense(self.gru(self.dropout(self.items(item_ids)))[0])
        return states
