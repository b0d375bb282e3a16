"""Stands in for the root module's forward: takes ``request=`` out and puts its gates in force."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel

_UNSET: Any = object()


class RequestForward:
    """The root's forward, with the keywords ``request`` and ``request_strength``.

    It is set on the instance, not by hooks: a hook is not called when a KeyboardInterrupt ends the
    forward, and the request would stay in force. A model whose own forward has a parameter named
    ``request`` keeps that keyword for itself; ``with masks.request(…)`` serves it.
    """

    def __init__(self, tuner: RequestMaskModel, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)  # inspect.signature keeps giving the model's own
        self._tuner = tuner
        self._forward = forward
        self._own_keyword = "request" in inspect.signature(forward).parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tuner = self._tuner
        if self._own_keyword:
            request, strength = _UNSET, None
        else:
            request, strength = kwargs.pop("request", _UNSET), kwargs.pop("request_strength", None)
        source = tuner.carrier.current() if request is _UNSET else tuner.gate_source(request, strength)
        if source is None and request is _UNSET:
            return self._forward(*args, **kwargs)
        gates = source.for_forward() if source is not None and tuner.adapters_enabled else None
        if torch.compiler.is_compiling():  # not every version of torch can trace a context manager
            outer = tuner.carrier.swap_local(gates)
            try:
                return self._forward(*args, **kwargs)
            finally:
                tuner.carrier.swap_local(outer)
        with tuner.carrier.carrying(gates):
            return self._forward(*args, **kwargs)


def intercept(tuner: RequestMaskModel, model: nn.Module) -> None:
    """Set a :class:`RequestForward` on ``model``."""
    model.forward = RequestForward(tuner, model.forward)  # type: ignore[method-assign, assignment]
