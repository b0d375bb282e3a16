"""Answers a batch of calls with the model; used by one thread."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cramer_peft import MaskState
from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.recommender import RequestRecommender

from .asks import Ask
from .cache import StateCache
from .ranking import best_items
from .stacking import rows_of, stacked


class Scorer:
    """The model behind the server.

    Args:
        recommender: Backbone, adapter and catalogue.
        cache: Keeps mask states between batches.
    """

    def __init__(self, recommender: RequestRecommender, cache: StateCache) -> None:
        self._masks = recommender.masks
        self._length = int(recommender.masks.model.max_length)  # type: ignore[arg-type]
        self._items = len(recommender.catalogue)
        self._cache = cache

    def __call__(self, asks: Sequence[Ask]) -> list[list[int]]:
        """The item indices recommended to each call, in the order of the calls.

        Raises:
            EncoderError: If a text cannot be encoded.
        """
        histories = [torch.tensor(ask.history, dtype=torch.long) for ask in asks]
        with torch.no_grad():
            state = stacked(self._states([ask.request for ask in asks]))
            scores = self._masks(pad_histories(histories, self._length), request=state)
            scores = scores.masked_fill(seen_mask(histories, self._items), -torch.inf)
            return best_items(scores, [ask.k for ask in asks])

    def _states(self, texts: Sequence[str | None]) -> list[MaskState | None]:
        (adapter,) = self._masks.active_adapters
        distinct = [text for text in dict.fromkeys(texts) if text is not None]
        known = {text: self._cache.get((adapter, text)) for text in distinct}
        new = [text for text, state in known.items() if state is None]
        if new:
            for text, state in zip(new, rows_of(self._masks.mask_state(new, adapter_name=adapter)), strict=True):
                known[text] = state
                self._cache.put((adapter, text), state)
        return [None if text is None else known[text] for text in texts]
