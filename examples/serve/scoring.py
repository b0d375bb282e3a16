"""Answers a batch of calls with the model; used by one thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.heard import Heard

from .asks import Ask
from .cache import StateCache
from .ranking import best_items
from .reading import Reader
from .stacking import stacked


@dataclass(frozen=True)
class Listed:
    """The answer to one call.

    Attributes:
        items: Item indices, best first.
        heard: What was understood of the request; None without one, or if the encoder does not tell.
    """

    items: list[int]
    heard: Heard | None = None


class Scorer:
    """The model behind the server.

    Args:
        recommender: Backbone, adapter and catalogue.
        cache: Keeps requests between batches.
    """

    def __init__(self, recommender: RequestRecommender, cache: StateCache) -> None:
        self._masks = recommender.masks
        self._length = int(recommender.masks.model.max_length)  # type: ignore[arg-type]
        self._items = len(recommender.catalogue)
        self._read = Reader(recommender, cache)

    def __call__(self, asks: Sequence[Ask]) -> list[Listed]:
        """The items recommended to each call and what was heard, in the order of the calls.

        Raises:
            DataError: If the encoder cannot read earlier requests.
            EncoderError: If a text cannot be encoded.
        """
        histories = [torch.tensor(ask.history, dtype=torch.long) for ask in asks]
        with torch.no_grad():
            known = self._read(asks)
            state = stacked([one.state for one in known])
            scores = self._masks(pad_histories(histories, self._length), request=state)
            scores = scores.masked_fill(seen_mask(histories, self._items), -torch.inf)
            lists = best_items(scores, [ask.k for ask in asks])
        return [Listed(items, one.heard) for items, one in zip(lists, known, strict=True)]
