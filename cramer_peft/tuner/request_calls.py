"""Calls of an adapted model: the root's forward takes the request out of a call, the handle makes its masks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.adapter import Adapter, check_row_names, joined, masks_by_row, masks_together
from cramer_peft.context import BASE, NO_MASK, LazyMasks, NoMask, RequestMasks
from cramer_peft.errors import MergeError, RequestError
from cramer_peft.masks.tracing import trace_refusal
from cramer_peft.requests import AllRequests, Strength, check_still_valid
from cramer_peft.tuner.mask_tuner import RequestMaskTuner

_MISNAMED = {"requests": "request", "strength": "request_strength"}


class RequestCalls(RequestMaskTuner):
    """The part of the handle that answers calls: each takes a request, whose masks are made here."""

    @property
    def merged(self) -> bool:
        """True if a request is merged into the weights."""
        return self._merged is not None

    def _replace_root_forward(self, model: nn.Module) -> None:
        model.forward = RequestForward(self, model.forward)  # type: ignore[method-assign, assignment]

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        # Named, because transformers' Trainer looks for labels here.
        if self._record is None and "request" in kwargs and "request" not in signature(self.model.forward).parameters:
            self._check_loaded()
        return super().forward(*args, **kwargs, **({} if labels is None else {"labels": labels}))

    def lazy_masks(
        self, requests: AllRequests, strength: Strength = None, adapter_names: Sequence[str] | None = None
    ) -> LazyMasks | None:
        """Return the masks of some requests, not made yet; None if no row has a request. See :meth:`request`."""
        if self._merged is not None and not (requests is None and adapter_names is None):
            raise MergeError("a request is merged into the weights: call unmerge() before giving another.")
        if self._record is None or not self.active_adapters:
            self.active_names()  # raises, and says which of the two it is
        active = None
        if adapter_names is not None:
            masks = masks_by_row(self, adapter_names, requests, strength)
        else:
            active = list(self.active_adapters)
            masks = masks_together([Adapter(self, name) for name in active], requests, strength)
        if masks is not None:
            masks.check = functools.partial(check_still_valid, self, active, masks.check)
            masks.given = (requests, strength)  # for a call inside the block with adapter_names
        return masks

    def _default_masks(self) -> LazyMasks | None:
        if self._merged is not None:
            return None
        names = self.request_context.row_names()
        if names is not None:  # for modules that generate calls outside the root, such as an encoder
            return self.default_masks_by_row(names.names)
        made = [Adapter(self, name).default_masks() for name in dict.fromkeys(self.active_adapters)]
        return joined([masks for masks in made if masks is not None])

    def default_masks_by_row(self, names: Sequence[str]) -> LazyMasks | None:
        """Return the masks of the stored default requests of each row's adapter."""
        check_row_names(self, names)
        stored = {name: Adapter(self, name).generator.default_request for name in set(names) - {BASE}}
        return masks_by_row(self, names, [stored.get(name) for name in names], None)

    def check_row_count(self, names: Sequence[str], args: Any, kwargs: Any) -> None:
        """Check that ``adapter_names`` has a name for each row of a call's first tensor."""
        if self._merged is not None and self.adapters_enabled:
            raise MergeError(
                "a request is merged into the weights, which all rows share: call unmerge() before passing "
                "adapter_names."
            )
        config = next((self.peft_config[name] for name in self.active_adapters), None)
        inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if config is None or config.batch_folding is not None or inputs is None or inputs.dim() <= config.batch_dim:
            return
        if inputs.shape[config.batch_dim] != len(names):
            raise RequestError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {inputs.shape[config.batch_dim]} respectively."
            )


class RequestForward:
    """The root's forward, with the keywords ``request``, ``request_strength`` and ``adapter_names``.

    It is no hook: none is called when a KeyboardInterrupt ends the forward, and the request would still apply then.
    A model whose own forward has a parameter named ``request`` keeps that keyword for itself.
    """

    def __init__(self, handle: RequestCalls, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward, updated=())  # so that inspect.signature still gives the model's own
        self._handle = handle
        self._forward = forward
        parameters = signature(forward).parameters
        self._own_keyword = "request" in parameters
        self._takes_names = "adapter_names" not in parameters
        # The names of `masks.request(…)`: a model that takes any keyword would pass over them.
        self._misnamed = {} if self._own_keyword else {n: k for n, k in _MISNAMED.items() if n not in parameters}

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
            for name, keyword in self._misnamed.items():
                if name in kwargs:
                    raise RequestError(f"a call takes no {name!r}: give {keyword}=….")
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
