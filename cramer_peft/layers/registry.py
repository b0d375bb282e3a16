"""Which wrapper masks which class of module; users can add their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from cramer_peft.layers.base import RequestMaskLayer

_WRAPPERS: dict[type[nn.Module], type[RequestMaskLayer]] = {}

Wrapper = TypeVar("Wrapper", bound="type[RequestMaskLayer]")


def register_mask_layer(module_class: type[nn.Module]) -> Callable[[Wrapper], Wrapper]:
    """Class decorator: the decorated :class:`RequestMaskLayer` masks modules of ``module_class``.

    A later registration for the same class replaces the earlier one.
    """

    def register(wrapper: Wrapper) -> Wrapper:
        _WRAPPERS[module_class] = wrapper
        return wrapper

    return register


def wrapper_for(module: nn.Module) -> type[RequestMaskLayer] | None:
    """The wrapper class for ``module``, or None.

    A subclass is masked like its parent only if it runs the parent's forward: one with a forward of
    its own may do anything with the weight, so it needs a registration of its own.
    """
    for base in type(module).__mro__:
        wrapper = _WRAPPERS.get(base)
        if wrapper is not None:
            inherits = base is type(module) or getattr(type(module), "forward", None) is getattr(base, "forward", None)
            return wrapper if inherits else None
    return None


def registered_classes() -> list[str]:
    """Names of the module classes that can be masked, for error messages."""
    return sorted(module_class.__name__ for module_class in _WRAPPERS)
