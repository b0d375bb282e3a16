"""Reads the requests of a batch of calls: the masks of each, and what was heard."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.heard import Heard

from .asks import Ask
from .cache import Key, Known, StateCache
from .stacking import rows_of


class Reader:
    """Reads requests, and keeps what it read.

    Args:
        recommender: Backbone, adapter and catalogue.
        cache: Keeps requests between batches.
    """

    def __init__(self, recommender: RequestRecommender, cache: StateCache) -> None:
        self._recommender, self._masks = recommender, recommender.masks
        self._cache = cache

    def __call__(self, asks: Sequence[Ask]) -> list[Known]:
        """Each call's request as it was read.

        Raises:
            DataError: If the encoder cannot read earlier requests.
            EncoderError: If a text cannot be encoded.
        """
        (adapter,) = self._masks.active_adapters
        keys = [() if ask.request is None else (adapter, *ask.before, ask.request) for ask in asks]
        examples = {key: ask for key, ask in zip(keys, asks, strict=True) if key}
        found = {key: self._cache.get(key) for key in examples}
        new = self._read({key: examples[key] for key, known in found.items() if known is None})
        for key, known in new.items():
            self._cache.put(key, known)
        known_by_key = {**found, **new}
        return [self._of_history(known_by_key.get(key), ask) for key, ask in zip(keys, asks, strict=True)]

    def _read(self, asks: dict[Key, Ask]) -> dict[Key, Known]:
        texts = [ask.request for ask in asks.values() if ask.request is not None and not ask.before]
        if len(texts) > 1:
            self._masks.encode(texts)  # together, which is faster, and kept by the encoder
        heard = {key: self._recommender.listener.vector(ask.request, (), ask.before) for key, ask in asks.items()}
        return dict(zip(heard, self._masked(list(heard.values())), strict=True))

    def _of_history(self, known: Known | None, ask: Ask) -> Known:
        """The request of one call; what a person usually takes depends on the history, and is not kept."""
        if known is None:
            return Known(None)
        if known.heard is None or not known.heard.needs_history:
            return known
        return self._masked([self._recommender.listener.vector(ask.request, ask.history, ask.before)])[0]

    def _masked(self, read: Sequence[tuple[Heard | None, Tensor | None]]) -> list[Known]:
        vectors = [vector for _, vector in read if vector is not None]
        rows = iter(rows_of(self._masks.mask_state(vectors)) if vectors else ())
        return [Known(None if vector is None else next(rows), heard) for heard, vector in read]
