"""SASRec, built from transformers' own BERT."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from cramer_peft.recsys.backbones.backbone import HEAD_BIAS, bert_config, item_scores, last_positions, set_constant_bias
from cramer_peft.recsys.backbones.sampling import sampled_loss


class SASRec(BertPreTrainedModel):
    """SASRec: a causal transformer over the items of a history, scored by dot products with the items.

    It is RecBole's architecture (2 layers, 2 heads, hidden 64, inner 256, GELU, norm after each block;
    Kang & McAuley 2018 with RecBole 1.2.1's defaults), on transformers' ``BertModel``. Items are numbered
    from 1 in its inputs; 0 pads on the right, where a causal model never looks from a real position.

    Args:
        config: A ``BertConfig``, best made by :meth:`configure`.
    """

    name: ClassVar[str] = "sasrec"
    default_targets: ClassVar[list[str]] = ["intermediate.dense", "output.dense"]
    default_parts: ClassVar[list[str] | None] = None
    head_targets: ClassVar[list[str]] = ["head"]
    head_bias: float = HEAD_BIAS  # of a model: what its configuration says
    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "bert.embeddings.word_embeddings.weight"}
    expands_positions: ClassVar[bool] = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        # A module of its own, tied to the embeddings, so that masks can gate the scores of items too.
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_bias = getattr(config, "head_bias", 0.0)
        set_constant_bias(self.head, self.head_bias)
        self.negatives: int | None = None  # while it is trained on samples of the catalogue
        self.calibration: float | None = None  # of gbce, while that is the loss on samples
        self.post_init()
        # BERT adds the embedding of a sentence number; SASRec has no such thing: zeros, and a buffer, because
        # from_pretrained would make a parameter trainable again.
        sentence = self.bert.embeddings.token_type_embeddings
        del sentence.weight
        sentence.register_buffer("weight", torch.zeros(1, config.hidden_size))

    def _init_weights(self, module: nn.Module) -> None:
        """What transformers calls for each module, and again for what is in no file once the others are loaded."""
        super()._init_weights(module)
        if module is self.head and module.bias is not None:
            nn.init.constant_(module.bias, self.config.head_bias)

    @staticmethod
    def configure(
        num_items: int,
        max_length: int = 50,
        dropout: float = 0.2,
        hidden_size: int = 64,
        head_bias: float = HEAD_BIAS,
    ) -> BertConfig:
        """The configuration for a catalogue.

        Args:
            num_items: Number of items.
            max_length: Longest history, in items; the most recent ones count.
            dropout: Dropout of embeddings, attention and feed-forward layers.
            hidden_size: Width; the inner layers are four times as wide.
            head_bias: What the score of every item has besides its product
                (:func:`~cramer_peft.recsys.backbones.backbone.set_constant_bias`).
        """
        options = {"is_decoder": True, "use_cache": False, "head_bias": head_bias}
        return bert_config(num_items + 1, max_length, dropout, hidden_size, **options)

    def get_output_embeddings(self) -> nn.Module:
        """The scoring layer, which transformers ties to the item embeddings."""
        return self.head

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return int(self.config.vocab_size) - 1

    @property
    def max_length(self) -> int:
        """Longest history, in items."""
        return int(self.config.max_position_embeddings)

    def forward(
        self,
        item_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Score the whole catalogue.

        Args:
            item_ids: Histories, (rows, length) int64, items from 1, padded with 0 on the right.
            labels: Next item at each position, (rows, length) int64, items from 0, -100 where there is
                none. Given, the return value is ``{"loss": …}`` over all positions: cross-entropy over all items or,
                where ``negatives`` is set, :func:`~cramer_peft.recsys.backbones.sampling.sampled_loss`.
            positions: Positions to score instead of the last, (rows, n) int64: what may come after each.
            items: Score these items alone, (m,) int64, from 0; masks of the scoring layer do not count then.

        Returns:
            Scores of the items 0 … num_items - 1 after each row's last item, (rows, num_items); with
            ``positions``, (rows, n, num_items); with ``items``, of those m in place of all.

        Raises:
            DataError: If a row holds no item.
        """
        hidden = self.bert(item_ids).last_hidden_state
        if labels is not None:
            states, targets = hidden[labels >= 0], labels[labels >= 0]
            if self.negatives is not None:
                table = self.head.weight
                return {"loss": sampled_loss(states, table, targets, self.negatives, self.calibration)}
            return {"loss": nn.functional.cross_entropy(item_scores(self.head, states), targets)}
        rows = torch.arange(len(item_ids), device=item_ids.device)
        if positions is not None:
            return item_scores(self.head, hidden[rows[:, None], positions], items)
        return item_scores(self.head, hidden[rows, last_positions(item_ids)], items)
