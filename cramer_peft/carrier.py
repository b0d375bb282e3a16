"""Carries the current request from the caller to the masked layers.

A plain attribute would mix up threads, and a ContextVar breaks ``torch.compile``'s graph at every
layer. So: a ContextVar when eager (right across threads and ``await``), and a thread-local that is
owned by the adapter under ``torch.compile`` (one full graph; a compiled call must not await inside
a request block).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from cramer_peft.active import GatesInForce

# One variable for all adapters: context variables are never freed, so none is made per adapter.
_SOURCES: ContextVar[Mapping[RequestCarrier, GatesInForce | None]] = ContextVar(
    "cramer_peft_requests", default=MappingProxyType({})
)


class _NoGates:
    """In force where it was said that there is no request, which is not the same as nothing said."""

    for_recompute = False

    def gates_of(self, entry: str) -> None:
        return None

    def for_forward(self) -> _NoGates:
        return self


NO_GATES = _NoGates()


_KEPT = ("default", "enabled", "activated")


class _Local(threading.local):
    def __init__(self) -> None:
        # Called in each thread. Set from the start, since torch.compile would recompile when it appears.
        self.source: GatesInForce | None = None


class RequestCarrier:
    """Hands the gates of the current request to the layers of one adapted model.

    Attributes:
        default: Gives the gates of the stored default request, for calls of which nothing was said; None:
            there is none.
        enabled: Whether masks are on at all.
        activated: Told by a layer which adapters it was set to.
    """

    def __init__(self) -> None:
        self._local = _Local()
        self.default: Callable[[], GatesInForce | None] | None = None
        self.enabled = True
        self.activated: Callable[[list[str]], None] | None = None
        # Set once a request has run with gradients: from then on, a masked layer that runs inside
        # backward without a request is a checkpoint's recompute that has lost it.
        self.used_with_gradients = False

    def said(self) -> GatesInForce | None:
        """What was said of a request here: its gates, NO_GATES, or None for nothing."""
        if torch.compiler.is_compiling():
            return self._local.source
        return _SOURCES.get().get(self)

    def current(self) -> GatesInForce | None:
        """The gates in force here, or None where nothing is to be masked."""
        source = self.said()
        if source is None and self.default is not None:
            source = self.default()
        return None if source is NO_GATES else source

    def masking(self) -> bool:
        """Whether a layer that is called here will be masked."""
        return self.enabled and self.current() is not None

    @contextmanager
    def carrying(self, source: GatesInForce | None) -> Iterator[None]:
        """Put ``source`` in force inside the block; None means: no request, whatever is outside."""
        outer = self.swap_local(NO_GATES if source is None else source)
        if torch.compiler.is_compiling():
            try:
                yield
            finally:
                self.swap_local(outer)
            return
        token = _SOURCES.set({**_SOURCES.get(), self: NO_GATES if source is None else source})
        try:
            yield
        finally:
            _SOURCES.reset(token)
            # Not `outer`: blocks that interleave on one thread (asyncio) need not end in reverse order.
            self._local.source = self.said()

    def swap_local(self, source: GatesInForce | None) -> GatesInForce | None:
        """Put ``source`` in force for compiled code of this thread alone; returns what was."""
        outer = self._local.source
        self._local.source = source
        return outer

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestCarrier:
        new = memo[id(self)] = RequestCarrier()  # a copied model starts without a request
        new.__setstate__({name: copy.deepcopy(getattr(self, name), memo) for name in _KEPT})
        return new

    def __reduce__(self) -> tuple[type[RequestCarrier], tuple[()], dict[str, Any]]:
        # Thread-locals cannot be pickled, and a request is not part of a model.
        return RequestCarrier, (), {name: getattr(self, name) for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
