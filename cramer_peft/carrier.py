"""Carries the current request from the caller to the masked layers.

A plain attribute would mix up threads, and a ContextVar breaks ``torch.compile``'s graph at every
layer. So: a ContextVar when eager (right across threads and ``await``), and a thread-local that is
owned by the adapter under ``torch.compile`` (one full graph; a compiled call must not await inside
a request block).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from cramer_peft.active import GateSource, PinnedGates

# One variable for all adapters: context variables are never freed, so none is made per adapter.
_SOURCES: ContextVar[Mapping[RequestCarrier, GateSource | PinnedGates | None]] = ContextVar(
    "cramer_peft_requests", default=MappingProxyType({})
)


class _Local(threading.local):
    def __init__(self) -> None:
        # Called in each thread. Set from the start, since torch.compile would recompile when it appears.
        self.source: GateSource | PinnedGates | None = None


class RequestCarrier:
    """Hands the gates of the current request to the layers of one adapted model."""

    def __init__(self) -> None:
        self._local = _Local()
        # Set once a request has run with gradients: from then on, a masked layer that runs inside
        # backward without a request is a checkpoint's recompute that has lost it.
        self.used_with_gradients = False

    def current(self) -> GateSource | PinnedGates | None:
        """The gates in force here, or None where there is no request."""
        if torch.compiler.is_compiling():
            return self._local.source
        return _SOURCES.get().get(self)

    @contextmanager
    def carrying(self, source: GateSource | PinnedGates | None) -> Iterator[None]:
        """Put ``source`` in force inside the block; None means: no request, whatever is outside."""
        outer = self.swap_local(source)
        if torch.compiler.is_compiling():
            try:
                yield
            finally:
                self.swap_local(outer)
            return
        token = _SOURCES.set({**_SOURCES.get(), self: source})
        try:
            yield
        finally:
            _SOURCES.reset(token)
            # Not `outer`: blocks that interleave on one thread (asyncio) need not end in reverse order.
            self._local.source = self.current()

    def swap_local(self, source: GateSource | PinnedGates | None) -> GateSource | PinnedGates | None:
        """Put ``source`` in force for compiled code of this thread alone; returns what was."""
        outer = self._local.source
        self._local.source = source
        return outer

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestCarrier:
        return RequestCarrier()  # a copied model starts without a request

    def __reduce__(self) -> tuple[type[RequestCarrier], tuple[()]]:
        return RequestCarrier, ()  # thread-locals cannot be pickled, and a request is not part of a model
