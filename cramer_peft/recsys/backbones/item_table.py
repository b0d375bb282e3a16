"""The table of a backbone's items, and rows for new items in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cramer_peft.errors import UnsupportedError


def append_rows(table: nn.Embedding, head: nn.Linear, vectors: Tensor, last: int = 0) -> Tensor | None:
    """Add rows to the table of the items, and to the layer that scores items by it, in place; return that one's bias.

    Args:
        table: The embeddings: a row for the padding, then the items, then ``last`` others, such as a mask token's.
        head: The layer that scores items, which shares the weight. A new item's bias is the mean of the others'.
        vectors: The new items' embeddings, (items, width) floating point.
        last: Number of rows that stay behind the items.

    Raises:
        UnsupportedError: If one of the layers is masked or of another kind.
    """
    for layer, kind in ((table, nn.Embedding), (head, nn.Linear)):
        if type(layer) is not kind:
            raise UnsupportedError(f"the item table is in a {type(layer).__name__}, expected an nn.{kind.__name__}.")
    old = table.weight
    end = len(old) - last
    weight = torch.cat([old[:end], vectors.to(old), old[end:]]).detach()
    table.weight = head.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    table.num_embeddings = head.out_features = len(weight)
    bias = head.bias
    if bias is not None:
        new = bias[1:end].mean().expand(len(vectors))
        longer = torch.cat([bias[:end], new, bias[end:]]).detach()
        learned = isinstance(bias, nn.Parameter)
        head.bias = nn.Parameter(longer, requires_grad=bias.requires_grad) if learned else longer  # type: ignore[assignment]
    return head.bias
