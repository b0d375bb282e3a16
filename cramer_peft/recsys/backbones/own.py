"""Any recommender as a backbone: all that is asked of it is scores of the items after histories."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cramer_peft.recsys.backbones.backbone import PADDING, prefixes


@runtime_checkable
class ItemScorer(Protocol):
    """A recommender, as :class:`OwnBackbone` needs it: item ids in, scores out."""

    num_items: int  # in the catalogue
    max_length: int  # longest history, in items

    def scores(self, item_ids: Tensor) -> Tensor:
        """Return scores of the items 0 … num_items - 1, (rows, num_items), after each row's last item.

        ``item_ids`` is (rows, max_length or fewer) int64: items from 1 in the order of the catalogue, oldest first,
        padded with 0 on the right. A row's scores must depend on that row alone.
        """


class OwnBackbone(nn.Module):
    """A recommender of your own behind the interface of the backbones; a subclass is an :class:`ItemScorer`.

    It sets ``num_items`` and ``max_length`` and defines :meth:`scores`. Requests act on these scores; nothing inside is
    masked, so what is inside need not be a torch module. A property ``item_vectors``, the embeddings (num_items, width)
    of the items, tells a request more about them.
    """

    name: ClassVar[str] = "own"
    default_targets: ClassVar[list[str] | str | None] = None
    default_parts: ClassVar[list[str] | None] = None
    expands_positions: ClassVar[bool] = True  # each costs a row

    num_items: int
    max_length: int

    def __init__(self) -> None:
        super().__init__()
        self.placed = nn.Parameter(torch.zeros(()), requires_grad=False)  # where it is, whatever is inside

    def scores(self, item_ids: Tensor) -> Tensor:
        """Return scores as :class:`ItemScorer` says."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(item_ids).")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.placed.device

    def forward(self, item_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Score the whole catalogue, as a ``Backbone``."""
        if positions is None:
            return self.scores(item_ids).clone()  # the masks are added in place, and these may be kept
        return self.scores(prefixes(item_ids, positions)).reshape(*positions.shape, -1).clone()


def padded_left(item_ids: Tensor) -> Tensor:
    """Move the padding of histories, (rows, length) int64, from the right to the left, as many packages have it."""
    order = (item_ids != PADDING).long().argsort(dim=1, stable=True)
    return item_ids.gather(1, order)
