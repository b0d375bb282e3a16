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
from torch import nn

from cramer_peft.recompute import DEFAULT, NOTHING, REQUEST, Seen, in_backward

if TYPE_CHECKING:
    from cramer_peft.active import GatesInForce

# One variable for all adapters: context variables are never freed, so none is made per adapter.
_SOURCES: ContextVar[Mapping[RequestCarrier, GatesInForce | None]] = ContextVar(
    "cramer_peft_requests", default=MappingProxyType({})
)


class NoGates:
    """In force where it was said that there is no request, which is not the same as nothing said."""

    is_default = False

    def __init__(self, for_recompute: bool = False) -> None:
        self.for_recompute = for_recompute

    def gates_of(self, entry: str) -> None:
        return None

    def for_forward(self) -> NoGates:
        return self


NO_GATES = NoGates()
NO_GATES_AGAIN = NoGates(for_recompute=True)

_KEPT = ("default", "enabled", "activated", "generators")


class _Held:
    """What compiled code of one thread reads."""

    def __init__(self) -> None:
        self.source: GatesInForce | None = None
        # Inside a compiled call, also where a graph break makes a layer run eagerly.
        self.in_compiled_call = False


class _Local(threading.local):
    def __init__(self) -> None:
        # Called in each thread, from the start, since torch.compile would recompile when it appears. An object
        # of its own: what torch.compile sets on a thread-local itself is lost at a graph break.
        self.held = _Held()
        # The gates of the default request for the recomputes of one backward, and which backward it is.
        self.recomputing: tuple[int, GatesInForce | None] = (-1, None)


class RequestCarrier:
    """Hands the gates of the current request to the layers of one adapted model.

    Attributes:
        default: Gives the gates of the stored default request, for calls of which nothing was said; None:
            there is none.
        enabled: Whether masks are on at all.
        activated: Told by a layer which adapters it was set to.
        generators: The adapters' generators, by name, for layers to report on.
    """

    def __init__(self) -> None:
        self._local = _Local()
        self.default: Callable[[], GatesInForce | None] | None = None
        self.enabled = True
        self.activated: Callable[[list[str]], None] | None = None
        self.generators = nn.ModuleDict()
        self.seen = Seen()

    def said(self) -> GatesInForce | None:
        """What was said of a request here: its gates, NO_GATES, or None for nothing."""
        if torch.compiler.is_compiling() or self._local.held.in_compiled_call:
            return self._local.held.source
        return _SOURCES.get().get(self)

    def current(self) -> GatesInForce | None:
        """The gates in force here, or None where nothing is to be masked."""
        source = self.said()
        if source is None and self.default is not None:
            source = self._default_again() if in_backward() else self.default()
        return None if isinstance(source, NoGates) else source

    def _default_again(self) -> GatesInForce | None:
        """The default gates for all recomputes of one backward, so that they are not made for each layer."""
        assert self.default is not None
        task = torch._C._current_graph_task_id()
        if self._local.recomputing[0] != task:
            self._local.recomputing = (task, self.default())
        return self._local.recomputing[1]

    def note(self, source: GatesInForce | None) -> None:
        """Note what is in force in a call, for recomputes in its backward."""
        if source is not None and not isinstance(source, NoGates):
            self.seen.note(DEFAULT if getattr(source, "is_default", False) else REQUEST)
        elif self.default is not None:
            self.seen.note(NOTHING)

    def allows_recompute(self, source: GatesInForce | None) -> bool:
        """Whether a recompute may run under ``source``, which it has found in force."""
        if source is None:
            said = self.said()
            brought_again = isinstance(said, NoGates) and said.for_recompute
            # With a default stored, to find nothing is an exception made for backward, or for the forward.
            return brought_again or (self.default is None and self.seen.only(NOTHING))
        return source.for_recompute and (not source.is_default or self.seen.only(DEFAULT))

    def masking(self) -> bool:
        """Whether a layer that is called here will be masked."""
        return self.enabled and self.current() is not None

    @contextmanager
    def carrying(self, source: GatesInForce | None, note: bool = True) -> Iterator[None]:
        """Put ``source`` in force inside the block; None means: no request, whatever is outside.

        ``note`` is False for what a checkpoint's context puts in force, since it comes back in the recompute.
        """
        if note:
            self.note(source)
        gates = NO_GATES if source is None else source
        if torch.compiler.is_compiling():
            before = self.enter_compiled_call(gates)
            try:
                yield
            finally:
                self.leave_compiled_call(before)
            return
        held = self._local.held
        outer, held.source = held.source, gates
        token = _SOURCES.set({**_SOURCES.get(), self: gates})
        try:
            yield
        finally:
            _SOURCES.reset(token)
            # Not `outer`: blocks that interleave on one thread (asyncio) need not end in reverse order.
            held.source = outer if held.in_compiled_call else self.said()

    def enter_compiled_call(self, source: GatesInForce | None) -> tuple[GatesInForce | None, bool]:
        """Put ``source`` in force on this thread for a compiled call; returns what was, for leaving it."""
        held = self._local.held
        outer = (held.source, held.in_compiled_call)
        held.source, held.in_compiled_call = source, True
        return outer

    def leave_compiled_call(self, outer: tuple[GatesInForce | None, bool]) -> None:
        """Put back what was in force before a compiled call."""
        self._local.held.source, self._local.held.in_compiled_call = outer

    def __deepcopy__(self, memo: dict[int, Any]) -> RequestCarrier:
        new = memo[id(self)] = RequestCarrier()  # a copied model starts without a request
        new.__setstate__({name: copy.deepcopy(getattr(self, name), memo) for name in _KEPT})
        return new

    def __reduce__(self) -> tuple[type[RequestCarrier], tuple[()], dict[str, Any]]:
        # Thread-locals cannot be pickled, and a request is not part of a model.
        return RequestCarrier, (), {name: getattr(self, name) for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
