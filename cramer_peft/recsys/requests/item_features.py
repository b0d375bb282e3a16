"""Descriptions of items as numbers: what they are (attributes, title) and what users did with them (embedding).

Each part is whitened on its own catalogue: its numbers vary alike in every direction. The product of an item with the
mean of some others then tells whether it is one of them, as a linear discriminant does, and means the same in every
catalogue. Raw vectors share most of their length with all others, and a product of them says little.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEXT_WIDTH = 64  # wordllama trains its vectors so that they may be cut to their first 64 numbers
FLOORS = {"attributes": 0.01, "title": 0.05, "embedding": 0.05}  # of the largest variance: less is taken for noise


def item_features(
    embeddings: Tensor | None, attributes: Tensor, titles: Tensor, described: int | None = None
) -> Tensor:
    """Return the features of items, (items, width) float32: attributes, title, embedding if there is one, whitened.

    Args:
        embeddings: The items' vectors in a backbone, (items, width) float; None: none.
        attributes: The mean word vector of each item's attributes, (items, TEXT_WIDTH) float.
        titles: That of its title.
        described: Whiten by the first so many items, whose features then do not depend on the others; None: by all.
    """
    parts = {"attributes": attributes, "title": titles, "embedding": embeddings}
    floors = {name: FLOORS[name] for name, part in parts.items() if part is not None}
    return torch.cat([unit(whitened(parts[name], floor, described), described) for name, floor in floors.items()], -1)  # type: ignore[arg-type]


def whitened(rows: Tensor, floor: float, described: int | None = None) -> Tensor:
    """Return rows (n, width), centred and with the same variance in all directions, (n, width) float32.

    The directions stay as they are (symmetric whitening, ZCA). ``floor`` times the largest variance is added to each,
    so that directions without meaning are not blown up. Mean and variances are those of the first ``described`` rows.
    """
    count = len(rows) if described is None else described
    centred = rows.detach().double()
    centred = centred - centred[:count].mean(0)
    own = centred[:count]
    variances, directions = torch.linalg.eigh(own.T @ own / count)
    scales = (variances.clamp(min=0) + floor * variances.max().clamp(min=1e-12)).rsqrt()
    # apart, because the last bits of a product may depend on the number of its rows
    even = [part @ (directions * scales) @ directions.T for part in (own, centred[count:])]
    return torch.cat(even).float()


def unit(rows: Tensor, described: int | None = None) -> Tensor:
    """Return rows scaled so that the first ``described`` have a mean length of 1."""
    scaled: Tensor = rows / rows[:described].norm(dim=-1).mean().clamp(min=1e-12)
    return scaled
