"""Whose each row is: the names that ``adapter_names=`` gives, in force for the calls inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from cramer_peft.errors import RequestError

if TYPE_CHECKING:
    from cramer_peft.carrier import RequestCarrier


@dataclass(frozen=True)
class RowNames:
    """The name of each row's adapter.

    Attributes:
        names: One per row of the caller's batch.
        beams: How many rows ``generate`` makes of each, side by side.
    """

    names: tuple[str, ...]
    beams: int = 1

    def repeated(self, times: int | None = None) -> list[str]:
        """The names with each ``times`` side by side; None: once for each beam."""
        return [name for name in self.names for _ in range(self.beams if times is None else times)]


# PEFT takes adapter_names= out of a call before the model sees it, and announces it around the call instead.
_NAMES: ContextVar[Mapping[RequestCarrier, RowNames]] = ContextVar(
    "cramer_peft_adapter_names", default=MappingProxyType({})
)


def as_names(names: Sequence[str]) -> tuple[str, ...]:
    """``adapter_names`` as a tuple.

    Raises:
        RequestError: If it is no sequence of names.
    """
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise RequestError(f"adapter_names must be a list with one name for each row, found {names!r}.")
    return tuple(names)


@contextmanager
def row_adapters(carrier: RequestCarrier, names: Sequence[str], beams: int = 1) -> Iterator[None]:
    """Let each row of the calls inside the block have its own adapter."""
    token = _NAMES.set({**_NAMES.get(), carrier: RowNames(as_names(names), beams)})
    try:
        yield
    finally:
        _NAMES.reset(token)


def names_in_force(carrier: RequestCarrier) -> RowNames | None:
    """The names of the block that this runs in, or None."""
    return None if torch.compiler.is_compiling() else _NAMES.get().get(carrier)


class RowwiseForward:
    """The forward of a module of ``modules_to_save``: gives each row its own adapter's copy of the module.

    Set on PEFT's wrapper, which goes with it; a hook that is put on and taken off would race between threads.
    """

    def __init__(self, wrapper: AuxiliaryTrainingWrapper, carrier: RequestCarrier) -> None:
        self._wrapper = wrapper
        self._carrier = carrier

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = names_in_force(self._carrier)
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if found is not None and x is not None and "adapter_names" not in kwargs:
            kwargs["adapter_names"] = found.repeated(max(x.shape[0] // len(found.names), 1))
        return type(self._wrapper).forward(self._wrapper, *args, **kwargs)


def follow_names(model: nn.Module, carrier: RequestCarrier) -> None:
    """Set a :class:`RowwiseForward` on every module of ``modules_to_save``."""
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and "forward" not in vars(module):
            module.forward = RowwiseForward(module, carrier)  # type: ignore[method-assign]
