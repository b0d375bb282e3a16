"""SASRec, built on the BERT of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones.backbone import bert_config
from cramer_peft.recsys.backbones.item_table import append_rows
from cramer_peft.recsys.backbones.scoring import ScoredStates, set_earlier_bias


class SASRec(ScoredStates, BertPreTrainedModel):
    """SASRec: a causal transformer over a history, which scores items by dot products with their embeddings.

    It has RecBole 1.2.1's architecture (Kang & McAuley 2018), on transformers' ``BertModel``. In its inputs items count
    from 1; 0 pads on the right, where a causal model never looks from a real position.
    """

    name: ClassVar[str] = "sasrec"
    default_targets: ClassVar[list[str]] = ["intermediate.dense", "output.dense"]
    default_parts: ClassVar[list[str] | None] = None
    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "bert.embeddings.word_embeddings.weight"}
    expands_positions: ClassVar[bool] = False

    def __init__(self, config: BertConfig) -> None:
        if not config.is_decoder:
            raise DataError("is_decoder is False, expected a configuration of SASRec: it looks at earlier items alone.")
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        # a module of its own, tied to the embeddings, so that masks can be put on it
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        set_earlier_bias(self.head, getattr(config, "head_bias", 0.0))
        self.post_init()
        # SASRec has no sentence numbers, whose embedding BERT adds: zeros here, and a buffer, because from_pretrained
        # would make a parameter trainable again
        sentence = self.bert.embeddings.token_type_embeddings
        del sentence.weight
        sentence.register_buffer("weight", torch.zeros(1, config.hidden_size))

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module; transformers calls it again for weights and buffers that a loaded file lacks."""
        super()._init_weights(module)
        if module is self.head and module.bias is not None:
            nn.init.constant_(module.bias, self.config.head_bias)

    @staticmethod
    def configure(num_items: int, max_length: int = 50, dropout: float = 0.2, **sizes: Any) -> BertConfig:
        """Return the configuration for a catalogue; ``sizes`` is ``hidden_size``."""
        return bert_config(num_items + 1, max_length, dropout, is_decoder=True, use_cache=False, **sizes)

    def get_output_embeddings(self) -> nn.Module:
        """Return the scoring layer; transformers ties it to the item embeddings."""
        return self.head

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return int(self.config.vocab_size) - 1

    @property
    def max_length(self) -> int:
        """Longest history, in items."""
        return int(self.config.max_position_embeddings)

    def append_items(self, vectors: Tensor) -> None:
        """Add items after the last, in place, with these embeddings, (items, width) float."""
        append_rows(self.bert.embeddings.word_embeddings, self.head, vectors)
        self.config.vocab_size += len(vectors)

    def states(self, item_ids: Tensor) -> Tensor:
        hidden: Tensor = self.bert(item_ids).last_hidden_state
        return hidden
