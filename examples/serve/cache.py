"""Keeps the mask states of recent requests, and what was heard of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from cramer_peft import MaskState
from cramer_peft.recsys.requests.heard import Heard

Key = tuple[str, ...]  # adapter, earlier requests, text


@dataclass(frozen=True)
class Known:
    """A request that was read.

    Attributes:
        state: Its masks, of one row; None if it asks nothing.
        heard: What was understood; None if the adapter's encoder does not tell.
    """

    state: MaskState | None
    heard: Heard | None = None


class StateCache:
    """Requests that were read, by adapter and texts; the least recently used go first.

    One thread at a time may use it; its counts may be read from any.

    Args:
        entries: Most states kept.

    Attributes:
        hits: Lookups that found a state.
        misses: Lookups that did not.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._states: OrderedDict[Key, Known] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Key) -> Known | None:
        """A request that was read, or None."""
        state = self._states.get(key)
        if state is None:
            self.misses += 1
            return None
        self.hits += 1
        self._states.move_to_end(key)
        return state

    def put(self, key: Key, state: Known) -> None:
        """Keep a request that was read."""
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > self._entries:
            self._states.popitem(last=False)

    def clear(self) -> None:
        """Forget all states, for example after an adapter was swapped in place."""
        self._states.clear()
