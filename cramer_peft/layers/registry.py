"""The registry of masked layers: the wrapper for each class of module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from cramer_peft.layers.masked_layer import RequestMaskLayer

_WRAPPERS: dict[type[nn.Module], type[RequestMaskLayer]] = {}

Wrapper = TypeVar("Wrapper", bound="type[RequestMaskLayer]")


def register_mask_layer(module_class: type[nn.Module]) -> Callable[[Wrapper], Wrapper]:
    """Register the decorated :class:`RequestMaskLayer` for modules of ``module_class``; a class decorator.

    A later registration for the same class replaces the earlier one.
    """

    def register(wrapper: Wrapper) -> Wrapper:
        _WRAPPERS[module_class] = wrapper
        return wrapper

    return register


def wrapper_for(module: nn.Module) -> type[RequestMaskLayer] | None:
    """Return the wrapper class for ``module``, or None.

    A subclass with a forward of its own may do anything with the weight, so it needs a registration of its own.
    """
    for base in type(module).__mro__:
        wrapper = _WRAPPERS.get(base)
        if wrapper is not None:
            inherits = base is type(module) or getattr(type(module), "forward", None) is getattr(base, "forward", None)
            return wrapper if inherits else None
    return None


def registered_classes() -> list[str]:
    """Return the names of the module classes that can be masked, for error messages."""
    return sorted(module_class.__name__ for module_class in _WRAPPERS)
