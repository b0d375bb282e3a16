"""Tells modules in ``modules_to_save`` the adapter of each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cramer_peft.context import BASE, RequestContext


class RowwiseForward:
    """The forward of a module in ``modules_to_save``: runs each row through its own adapter's copy of the module.

    It stays on PEFT's wrapper, because a hook that each call adds and removes would race between threads.
    """

    def __init__(self, wrapper: AuxiliaryTrainingWrapper, context: RequestContext) -> None:
        self._wrapper = wrapper
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._context.row_names()
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if found is not None and x is not None and "adapter_names" not in kwargs:
            names = found.repeated(max(x.shape[0] // len(found.names), 1))
            own = self._wrapper._get_available_adapters()
            # An adapter that did not train the module leaves its rows to the frozen one.
            kwargs["adapter_names"] = [name if name in own else BASE for name in names]
        return type(self._wrapper).forward(self._wrapper, *args, **kwargs)


def follow_row_names(layers: Iterable[nn.Module], context: RequestContext) -> None:
    """Set a :class:`RowwiseForward` on every module of ``modules_to_save`` among ``layers``."""
    for module in layers:
        if isinstance(module, AuxiliaryTrainingWrapper) and "forward" not in vars(module):
            module.forward = RowwiseForward(module, context)  # type: ignore[method-assign]
