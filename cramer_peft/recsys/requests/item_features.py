"""Descriptions of items as numbers: what they are (attributes, title) and what users did with them (embedding).

Each part is whitened on its own catalogue: its numbers vary alike in every direction. The product of an item with the
mean of some others then tells whether it is one of them, as a linear discriminant does, and means the same in every
catalogue. Raw vectors share most of their length with all others, and a product of them says little.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEXT_WIDTH = 64  # wordllama trains its vectors so that they may be cut to their first 64 numbers
_FLOORS = {"attributes": 0.01, "title": 0.05, "embedding": 0.05}  # of the largest variance: less is taken for noise


def item_features(embeddings: Tensor | None, attributes: Tensor, titles: Tensor) -> Tensor:
    """Return the features of items, (items, width) float32: attributes, title, embedding if there is one, whitened.

    Args:
        embeddings: The items' vectors in a backbone, (items, width) float; None: none.
        attributes: The mean word vector of each item's attributes, (items, TEXT_WIDTH) float.
        titles: That of its title.
    """
    parts = {"attributes": attributes, "title": titles, "embedding": embeddings}
    return torch.cat([_unit(whitened(part, _FLOORS[name])) for name, part in parts.items() if part is not None], -1)


def whitened(rows: Tensor, floor: float) -> Tensor:
    """Return rows (n, width), centred and with the same variance in all directions, (n, width) float32.

    The directions stay as they are (symmetric whitening, ZCA). ``floor`` times the largest variance is added to each,
    so that directions without meaning are not blown up.
    """
    centred = rows.detach().double()
    centred = centred - centred.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    scales = (variances.clamp(min=0) + floor * variances.max().clamp(min=1e-12)).rsqrt()
    even: Tensor = centred @ (directions * scales) @ directions.T
    return even.float()


def _unit(rows: Tensor) -> Tensor:
    """Return rows scaled to a mean length of 1."""
    scaled: Tensor = rows / rows.norm(dim=-1).mean().clamp(min=1e-12)
    return scaled
