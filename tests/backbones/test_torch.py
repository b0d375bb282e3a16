"""torch's own transformer encoder and recurrent layers."""

import torch
from checks import Backbone, BackboneContract, Batch
from torch import Tensor, nn

ITEMS, LENGTH, WIDTH = 20, 6, 16


class GRU4Rec(nn.Module):
    """Session-based recommendation by a GRU: scores of all items after each history."""

    def __init__(self) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(ITEMS + 1, WIDTH, padding_idx=0)
        self.dropout = nn.Dropout(0.2)
        self.gru = nn.GRU(WIDTH, 2 * WIDTH, num_layers=2, batch_first=True, dropout=0.2)
        self.dense = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, item_ids: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.gru(self.dropout(self.item_embedding(item_ids)))
        last = self.dense(states)[torch.arange(len(lengths)), lengths - 1]
        return last @ self.item_embedding.weight[1:].T


def histories() -> Batch:
    return {
        "item_ids": torch.tensor([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8, 0, 0], [6, 6, 2, 0, 0, 0]]),
        "lengths": torch.tensor([6, 4, 3]),
    }


def score(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch)


def encoder(**options: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.2, **options)
    return nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)


def sequences() -> Batch:
    generator = torch.Generator().manual_seed(0)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 3 + [True] * 3])
    return {"src": torch.randn(3, LENGTH, WIDTH, generator=generator), "src_key_padding_mask": padding}


def encode(model: nn.Module, batch: Batch) -> Tensor:
    states = model(batch["src"], src_key_padding_mask=batch["src_key_padding_mask"])
    return states.masked_fill(batch["src_key_padding_mask"][..., None], 0.0)


def encode_sequence_first(model: nn.Module, batch: Batch) -> Tensor:
    states = model(batch["src"].transpose(0, 1), src_key_padding_mask=batch["src_key_padding_mask"])
    return states.transpose(0, 1).masked_fill(batch["src_key_padding_mask"][..., None], 0.0)


ENCODER_MODULES = ["self_attn", "linear1", "linear2"]
BACKBONES = [
    Backbone(
        "torch", "GRU4Rec", GRU4Rec, histories, lambda model, batch: model(**batch), ["item_embedding", "gru", "dense"]
    ),
    Backbone(
        "torch",
        "nn.TransformerEncoder",
        lambda: encoder(batch_first=True),
        sequences,
        encode,
        ENCODER_MODULES,
        frozen_rows_exact=False,
    ),
    Backbone(
        "torch",
        "nn.TransformerEncoder, sequence first, norm first",
        lambda: encoder(norm_first=True),
        sequences,
        encode_sequence_first,
        ENCODER_MODULES,
        config={"batch_dim": 1},
        frozen_rows_exact=False,
    ),
]


class TestTorch(BackboneContract):
    pass
