"""Keeps the mask states of recent requests."""

from __future__ import annotations

from collections import OrderedDict

from cramer_peft import MaskState

Key = tuple[str, str]  # adapter, text


class StateCache:
    """Mask states of one row by adapter and text; the least recently used go first.

    One thread at a time may use it; its counts may be read from any.

    Args:
        entries: Most states kept.

    Attributes:
        hits: Lookups that found a state.
        misses: Lookups that did not.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._states: OrderedDict[Key, MaskState] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Key) -> MaskState | None:
        """The state of a request, or None."""
        state = self._states.get(key)
        if state is None:
            self.misses += 1
            return None
        self.hits += 1
        self._states.move_to_end(key)
        return state

    def put(self, key: Key, state: MaskState) -> None:
        """Keep a state."""
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > self._entries:
            self._states.popitem(last=False)

    def clear(self) -> None:
        """Forget all states, for example after an adapter was swapped in place."""
        self._states.clear()
