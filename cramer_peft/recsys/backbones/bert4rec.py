"""BERT4Rec: a bidirectional transformer that fills in hidden items; the next item is one hidden at the end."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones.backbone import (
    HEAD_BIAS,
    PADDING,
    bert_config,
    checked_bias,
    last_positions,
    prefixes,
)
from cramer_peft.recsys.backbones.draws import uniform_rows

MASKED_SHARE = 0.2
LAST_ONLY_SHARE = 0.5


class BERT4Rec(BertForMaskedLM):
    """BERT4Rec (Sun et al. 2019) on transformers' ``BertForMaskedLM``, whose head is tied to the items.

    Items are numbered from 1 in its inputs, 0 pads on the right, and ``num_items + 1`` is the mask token. To score
    what comes next, a mask token is put after the last item. In training each item is hidden with probability 0.2;
    in half of the rows the last alone is, as when the model is used (RecBole 1.2.1 does both too).

    Args:
        config: A ``BertConfig``, best made by :meth:`configure`.
    """

    name: ClassVar[str] = "bert4rec"
    default_targets: ClassVar[list[str] | str | None] = ["intermediate.dense", "output.dense"]
    default_parts: ClassVar[list[str] | None] = None
    head_targets: ClassVar[list[str]] = ["cls.predictions.decoder"]
    head_bias: float = HEAD_BIAS  # of a model: what its configuration says
    expands_positions: ClassVar[bool] = True

    def __init__(self, config: BertConfig) -> None:
        if config.is_decoder:
            raise DataError("is_decoder is True, expected a configuration of BERT4Rec: it looks in both directions.")
        self.head_bias = checked_bias(getattr(config, "head_bias", 0.0))
        super().__init__(config)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BertLMPredictionHead):
            nn.init.constant_(module.bias, self.head_bias)

    @property
    def item_bias(self) -> Tensor:
        """What the score of each item has besides its product, learned from ``head_bias`` on, (num_items + 2,)."""
        bias: Tensor = self.cls.predictions.bias
        return bias

    @staticmethod
    def configure(
        num_items: int,
        max_length: int = 50,
        dropout: float = 0.2,
        hidden_size: int = 64,
        head_bias: float = HEAD_BIAS,
    ) -> BertConfig:
        """The configuration for a catalogue; the sizes are SASRec's.

        Args:
            num_items: Number of items.
            max_length: Longest history, in items; one more place is for the mask token.
            dropout: Dropout of embeddings, attention and feed-forward layers.
            hidden_size: Width; the inner layers are four times as wide.
            head_bias: What the scores of all items have in common. It changes no ranking, and masks of the scoring
                layer add by it (:func:`~cramer_peft.recsys.backbones.backbone.set_constant_bias`).
        """
        return bert_config(num_items + 2, max_length + 1, dropout, hidden_size, head_bias=head_bias)

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
        """The number that stands for a hidden item."""
        return self.num_items + 1

    def forward(
        self, item_ids: Tensor, labels: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue; see :class:`~cramer_peft.recsys.backbones.Backbone`.

        With ``labels`` the loss is that of hidden items, of the last alone in eval mode, and ``terms`` their number.
        With ``positions`` each row is scored once for each of them, cut there: inside the model rows · n rows.
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
