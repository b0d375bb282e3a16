"""Stands in for the root module's forward: takes ``request=`` out and puts its gates in force."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cramer_peft.active import GatesInForce
from cramer_peft.carrier import NO_GATES, NoGates
from cramer_peft.errors import MergeError, RequestError
from cramer_peft.row_names import names_in_force, row_adapters
from cramer_peft.sources import default_gates_by_row

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel


class RequestForward:
    """The root's forward, with the keywords ``request``, ``request_strength`` and ``adapter_names``.

    It is set on the instance, not by hooks: a hook is not called when a KeyboardInterrupt ends the
    forward, and the request would stay in force. A model whose own forward has a parameter named
    ``request`` keeps that keyword for itself; ``with masks.request(…)`` serves it.
    """

    def __init__(self, tuner: RequestMaskModel, forward: Callable[..., Any]) -> None:
        functools.update_wrapper(self, forward)  # inspect.signature keeps giving the model's own
        self._tuner = tuner
        self._forward = forward
        parameters = inspect.signature(forward).parameters
        self._own_keyword = "request" in parameters
        self._takes_names = "adapter_names" not in parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A flag, not a sentinel in place of the request: torch 2.7 compiles a look at a sentinel's identity
        # without a guard, and would go on answering for the call that it saw first.
        given, request, strength, names = False, None, None, None
        if not self._own_keyword:
            given = "request" in kwargs
            request, strength = kwargs.pop("request", None), kwargs.pop("request_strength", None)
            names = kwargs.pop("adapter_names", None) if self._takes_names else None
        if names is not None:
            with row_adapters(self._tuner.carrier, names):
                return self._run(given, request, strength, args, kwargs)
        return self._run(given, request, strength, args, kwargs)

    def _run(self, given: bool, request: Any, strength: Any, args: Any, kwargs: Any) -> Any:
        tuner = self._tuner
        in_force = names_in_force(tuner.carrier)
        names = None if in_force is None else in_force.repeated()
        if names is not None:
            if tuner.merged and tuner.adapters_enabled:
                raise MergeError(
                    "a request is merged into the weights, which all rows share: call unmerge() before passing "
                    "adapter_names."
                )
            _check_row_names(names, args, kwargs, tuner)
        source = self._source(given, request, strength, names if tuner.adapters_enabled else None)
        if source is None and not given:
            tuner.carrier.note(None)
            return self._forward(*args, **kwargs)
        gates = source.for_forward() if source is not None and tuner.adapters_enabled else None
        if torch.compiler.is_compiling():  # not every version of torch can trace a context manager
            outer = tuner.carrier.enter_compiled_call(NO_GATES if gates is None else gates)
            try:
                return self._forward(*args, **kwargs)
            finally:
                tuner.carrier.leave_compiled_call(outer)
        with tuner.carrier.carrying(gates):
            return self._forward(*args, **kwargs)

    def _source(self, given: bool, request: Any, strength: Any, names: Sequence[str] | None) -> GatesInForce | None:
        tuner = self._tuner
        if names is None:
            return tuner.gate_source(request, strength) if given else tuner.carrier.current()
        if given:
            return tuner.gate_source(request, strength, names)
        said = tuner.carrier.said()
        if isinstance(said, NoGates):
            return None
        if said is not None:
            asked = getattr(said, "asked", None)
            if asked is None:  # pinned by an outer call of the model, which has read the names
                return said  # type: ignore[no-any-return]
            requests, its_strength = asked
            return tuner.gate_source(requests, its_strength, names)
        return default_gates_by_row(tuner, names)


def _check_row_names(names: Sequence[str], args: Any, kwargs: Any, tuner: RequestMaskModel) -> None:
    config = next((tuner.peft_config[name] for name in tuner.active_adapters), None)
    inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if config is None or config.batch_folding is not None or inputs is None or inputs.dim() <= config.batch_dim:
        return
    if inputs.shape[config.batch_dim] != len(names):
        raise RequestError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(names)} and {inputs.shape[config.batch_dim]} respectively."
        )


def intercept(tuner: RequestMaskModel, model: nn.Module) -> None:
    """Set a :class:`RequestForward` on ``model``."""
    model.forward = RequestForward(tuner, model.forward)  # type: ignore[method-assign, assignment]
