"""The forward of an adapted model's root, which takes the request out of the call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from cramer_peft.context import NO_MASK, LazyMasks, NoMask, RequestContext, RequestMasks
from cramer_peft.masks.tracing import trace_refusal


class RootHandle(Protocol):
    """The handle, as the root's forward sees it."""

    model: nn.Module
    request_context: RequestContext

    def lazy_masks(self, requests: Any, strength: Any = None, adapter_names: Any = None) -> LazyMasks | None:
        """Return the masks of some requests, not made yet."""

    def default_masks_by_row(self, names: Sequence[str]) -> LazyMasks | None:
        """Return the masks of the stored default requests of each row's adapter."""

    def check_row_count(self, names: Sequence[str], args: Any, kwargs: Any) -> None:
        """Check that there is a name for each row of a call's first tensor."""


class RequestForward:
    """The root's forward, with the keywords ``request``, ``request_strength`` and ``adapter_names``.

    It is no hook: none is called when a KeyboardInterrupt ends the forward, and the request would still apply then.
    A model whose own forward has a parameter named ``request`` keeps that keyword for itself.
    """

    def __init__(self, handle: RootHandle, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward, updated=())  # so that inspect.signature still gives the model's own
        self._handle = handle
        self._forward = forward
        parameters = inspect.signature(forward).parameters
        self._own_keyword = "request" in parameters
        self._takes_names = "adapter_names" not in parameters

    def wrap_model(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put a masked output between this object and the model's own forward."""
        self._forward = wrap(self._forward)

    def unwrap_model(self) -> None:
        """Undo the last :meth:`wrap_model`."""
        self._forward = self._forward.__wrapped__  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A flag, because torch 2.7 compiles a comparison with a sentinel without a guard, and repeats its first result.
        given, request, strength, names = False, None, None, None
        if not self._own_keyword:
            given = "request" in kwargs
            request, strength = kwargs.pop("request", None), kwargs.pop("request_strength", None)
            names = kwargs.pop("adapter_names", None) if self._takes_names else None
        if names is not None:
            with self._handle.request_context.naming_rows(names):
                return self._run(given, request, strength, args, kwargs)
        return self._run(given, request, strength, args, kwargs)

    def _run(self, given: bool, request: Any, strength: Any, args: Any, kwargs: Any) -> Any:
        handle, context = self._handle, self._handle.request_context
        found = context.row_names()
        names = None if found is None else found.repeated()
        if names is not None:
            handle.check_row_count(names, args, kwargs)
        enabled = context.enabled
        masks = self._masks(given, request, strength, names if enabled else None)
        if masks is None and not given:
            context.note(None)
            return self._forward(*args, **kwargs)
        if isinstance(masks, LazyMasks) and not given and enabled and torch._C._get_tracing_state() is not None:
            raise trace_refusal(type(handle.model).__name__)
        fixed = masks.for_call() if masks is not None and enabled else None
        if torch.compiler.is_compiling():  # not every version of torch can trace a context manager
            outer = context.enter_compiled_call(NO_MASK if fixed is None else fixed)
            try:
                return self._forward(*args, **kwargs)
            finally:
                context.leave_compiled_call(outer)
        with context.using(fixed):
            return self._forward(*args, **kwargs)

    def _masks(self, given: bool, request: Any, strength: Any, names: Sequence[str] | None) -> RequestMasks | None:
        handle = self._handle
        if given:
            return handle.lazy_masks(request, strength, names)
        if names is None:
            return handle.request_context.current()
        stated = handle.request_context.stated()
        if stated is None:
            return handle.default_masks_by_row(names)
        if isinstance(stated, NoMask):
            return None
        # Masks that are made already are those of an outer call of the model, which has used the names.
        return stated if stated.given is None else handle.lazy_masks(*stated.given, names)
