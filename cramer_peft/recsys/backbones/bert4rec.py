"""BERT4Rec: a bidirectional transformer that fills in hidden items. The next item is one hidden at the end."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones.backbone import PADDING, bert_config, last_positions, prefixes
from cramer_peft.recsys.backbones.draws import uniform_rows
from cramer_peft.recsys.backbones.item_table import append_rows

MASKED_SHARE = 0.2
LAST_ONLY_SHARE = 0.5


class BERT4Rec(BertForMaskedLM):
    """BERT4Rec (Sun et al. 2019) on transformers' ``BertForMaskedLM``, whose head is tied to the items.

    Items count from 1, 0 pads on the right, ``num_items + 1`` is the mask token, put after the last item to score the
    next. Training hides each item with probability 0.2, and in half of the rows the last alone, as RecBole 1.2.1 does.
    """

    name: ClassVar[str] = "bert4rec"
    default_targets: ClassVar[list[str] | str | None] = ["intermediate.dense", "output.dense"]
    default_parts: ClassVar[list[str] | None] = None
    expands_positions: ClassVar[bool] = True

    def __init__(self, config: BertConfig) -> None:
        if config.is_decoder:
            raise DataError("is_decoder is True, expected a configuration of BERT4Rec: it looks in both directions.")
        super().__init__(config)

    @staticmethod
    def configure(num_items: int, max_length: int = 50, dropout: float = 0.2, **sizes: Any) -> BertConfig:
        """Return the configuration for a catalogue; ``sizes`` is ``hidden_size``."""
        return bert_config(num_items + 2, max_length + 1, dropout, **sizes)  # a mask token, and one place for it

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return int(self.config.vocab_size) - 2

    @property
    def max_length(self) -> int:
        """Longest history, in items."""
        return int(self.config.max_position_embeddings) - 1

    @property
    def mask_token(self) -> int:
        """The item number that stands for a hidden item."""
        return self.num_items + 1

    def append_items(self, vectors: Tensor) -> None:
        """Add items after the last, in place, with these embeddings, (items, width) float; the mask token moves."""
        predictions = self.cls.predictions
        predictions.bias = append_rows(self.bert.embeddings.word_embeddings, predictions.decoder, vectors, last=1)
        self.config.vocab_size += len(vectors)

    def forward(
        self, item_ids: Tensor, labels: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue; see :class:`~cramer_peft.recsys.backbones.Backbone`.

        The loss is that of the ``terms`` hidden items; ``positions`` give rows · n rows inside the model.
        """
        if labels is not None:
            return self._cloze_loss(item_ids, labels)
        if positions is None:
            return self._after_last(item_ids)
        return self._after_last(prefixes(item_ids, positions)).reshape(*positions.shape, -1)

    def _after_last(self, item_ids: Tensor) -> Tensor:
        place = last_positions(item_ids) + 1
        sequence = nn.functional.pad(item_ids, (0, 1)).scatter(1, place[:, None], self.mask_token)
        rows = torch.arange(len(sequence), device=sequence.device)
        return self._item_scores(self._states(sequence)[rows, place])

    def _cloze_loss(self, item_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        place = last_positions(item_ids) + 1
        following = labels.gather(1, place[:, None] - 1)
        sequence = nn.functional.pad(item_ids, (0, 1)).scatter(1, place[:, None], following.clamp(min=-1) + 1)
        last = torch.arange(sequence.shape[1], device=sequence.device) == (sequence != PADDING).sum(1)[:, None] - 1
        hidden = last
        if self.training:
            drawn = uniform_rows(len(sequence), sequence.shape[1], sequence.device) < MASKED_SHARE
            several = uniform_rows(len(sequence), 1, sequence.device) >= LAST_ONLY_SHARE
            hidden = torch.where(several & drawn.any(1, keepdim=True), drawn & (sequence != PADDING), last)
        scores = self._item_scores(self._states(sequence.masked_fill(hidden, self.mask_token))[hidden])
        return {"loss": nn.functional.cross_entropy(scores, sequence[hidden] - 1), "terms": hidden.sum()}

    def _states(self, sequence: Tensor) -> Tensor:
        states: Tensor = self.bert(sequence, attention_mask=(sequence != PADDING).long()).last_hidden_state
        return states

    def _item_scores(self, states: Tensor) -> Tensor:
        scores: Tensor = self.cls(states)
        return scores[..., 1 : self.num_items + 1]
