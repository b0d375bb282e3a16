"""Masks on what a module returns, whatever is inside it: gates on the features of its output, or row values.

A :class:`MaskedOutput` is a child of the module whose output it masks, under a name of its own. The module's method
hands its result to it (:class:`OutputMethod`). Modules inside that are called by another way while a request applies
are refused (:class:`RefuseOtherWays`): what they compute would reach the caller without the request.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.context import RequestContext, in_backward
from cramer_peft.errors import RequestError, UnsupportedError
from cramer_peft.layers.masked_layer import RequestMaskLayer
from cramer_peft.masks import FeatureMask, Mask, RowSpec, Spec

CHILD = "masked_output"  # without PEFT's prefix of ours, by which it would pass over the child


def spelled(entry: str) -> str:
    """Return an entry as ``target_outputs`` names it: the module, or the module's method."""
    module, _, method = entry.partition(":")
    return module if method in ("", "forward") else f"{module}.{method}".lstrip(".")


@dataclass(frozen=True)
class OutputTarget:
    """What to mask of a module's results, as ``target_outputs`` of the configuration says."""

    module: str
    method: str = "forward"
    field: str | None = None  # of the result that holds the tensor; None: the result is the tensor
    candidates: str | None = None  # parameter of the method with the rows to score, (n,) or (batch, n) int64
    features: int | None = None  # of the tensor, for gates; row features say it themselves
    in_place: bool = False  # True if nothing but the caller holds the tensor, so that values may be added in place

    @property
    def entry(self) -> str:
        """The name of its masks."""
        return f"{self.module}:{self.method}"

    @property
    def spelled(self) -> str:
        """Its name in ``target_outputs``."""
        return spelled(self.entry)

    @property
    def child(self) -> str:
        """The name of the masked output among the module's children."""
        return CHILD if self.method == "forward" else f"{CHILD}_{self.method}"


@dataclass(frozen=True)
class _WholeOutput:
    """A projection that only hands on, so that masks of weights can act on an output."""

    feature_dim: int = -1
    is_product: bool = False
    base_bias: None = None

    def base_forward(self, x: Tensor) -> Tensor:
        return x

    project = base_forward

    @property
    def weight_matrix(self) -> Tensor:
        raise NotImplementedError  # only low_rank reads it, which has no terms on features


class MaskedOutput(RequestMaskLayer):
    """The masked output of a module's method. It does not own the module: that one owns it."""

    linear = False

    def __init__(self, base_layer: nn.Module, target: OutputTarget, context: RequestContext) -> None:
        self.target = target
        super().__init__(base_layer, target.entry, context)
        del self._modules["base_layer"]  # a child that held its parent would be a circle
        self.__dict__["base_layer"] = base_layer

    @classmethod
    def part_specs(cls, base_layer: nn.Module) -> Mapping[str, Spec]:
        return {"": RowSpec()}

    @classmethod
    def unfoldable_parts(cls) -> tuple[str, ...]:
        return ("",)

    @classmethod
    def fingerprint_weights(cls, base_layer: nn.Module) -> Sequence[Tensor]:
        named = base_layer.named_parameters()
        return [value for name, value in named if ".modules_to_save." not in f".{name}" and type(value.data) is Tensor]

    def fold_parts(self, masks: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        return {}

    def forward(self, result: Any, chosen: Tensor | None = None, in_place: bool = False) -> Any:
        """Return a method's result with its tensor masked; ``chosen`` are the rows that the tensor has scores of.

        With ``in_place`` the tensor may be written to.
        """
        masks = self.context.masks_for(self.module_name, self._entries, self._disable_adapters) or self.merged_masks
        if not masks:
            return result
        tensor = self._tensor(result)
        return self._with_tensor(result, self._masked(masks[""], tensor, chosen, in_place))

    def _masked(self, mask: Mask, tensor: Tensor, chosen: Tensor | None, in_place: bool) -> Tensor:
        batch_dim = self.layout.batch_dim
        if chosen is not None:
            chosen = self._checked(chosen)
        fitted: Any = self.fitted(mask, tensor, batch_dim)
        if isinstance(fitted, FeatureMask):
            if chosen is not None:
                fitted = fitted.with_values(values=_chosen(fitted.values, chosen))
            if fitted.values.shape[-1] != tensor.shape[-1]:
                raise RequestError(
                    f"{self.module_name!r}: found {tensor.shape[-1]} features in an output of shape "
                    f"{tuple(tensor.shape)}, expected {fitted.values.shape[-1]} (target_outputs: 'features')."
                )
            gated: Tensor = fitted.multiply(tensor, batch_dim)
            return gated
        if hasattr(fitted, "add"):
            added: Tensor = fitted.add(tensor, batch_dim, -1, chosen, in_place)
            return added
        if chosen is not None:
            raise RequestError(f"{self.module_name!r}: scores of some rows alone follow one active adapter at a time.")
        composed: Tensor = fitted.apply(_WholeOutput(), tensor, batch_dim)
        return composed

    def _checked(self, chosen: Any) -> Tensor:
        whole = isinstance(chosen, Tensor) and not chosen.is_floating_point() and chosen.dtype is not torch.bool
        if not whole or chosen.dim() not in (1, 2):
            shown = f"{chosen.dtype} of shape {tuple(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen)
            raise RequestError(
                f"{self.module_name!r}: found {shown} as {self.target.candidates!r}, expected row numbers, (n,) or "
                "(batch, n) int64."
            )
        return chosen.long()  # type: ignore[no-any-return]

    def _tensor(self, result: Any) -> Tensor:
        field = self.target.field
        found = result if field is None else _item(result, field)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            name, fields = self.target.spelled, _fields(result)
            shown = "" if field is None else f" in the field {field!r} of a {type(result).__name__}"
            named = f"name one of the fields {fields} by target_outputs={{{name!r}: {{'field': …}}}}"
            raise RequestError(
                f"{name or 'the model itself'!r}: found a {type(found).__name__}{shown}, expected a tensor of "
                f"floating-point numbers: {named if fields else 'return one'}, or call it without a request."
            )
        return found

    def _with_tensor(self, result: Any, tensor: Tensor) -> Any:
        field = self.target.field
        if field is None:
            return tensor
        if isinstance(result, tuple) and hasattr(result, "_replace"):
            return result._replace(**{field: tensor})
        if dataclasses.is_dataclass(result) and not isinstance(result, (type, Mapping)):
            return dataclasses.replace(result, **{field: tensor})
        if type(result) is dict:  # torch.compile cannot trace a copy of it
            return {**result, field: tensor}
        changed = copy.copy(result)
        if isinstance(changed, Mapping):
            changed[field] = tensor  # type: ignore[index]
        else:
            setattr(changed, field, tensor)
        return changed


@dataclass
class _Call:
    """A running call of a method whose result is masked; ``masked`` if another one that it called has done so."""

    module: nn.Module
    masked: bool = False


class _Calls(threading.local):
    """The calls that run on a thread, the innermost last."""

    def __init__(self) -> None:
        self.running: list[_Call] = []


_CALLS = _Calls()


class OutputMethod:
    """A method of one module object that hands its result to the module's masked output."""

    def __init__(self, layer: MaskedOutput, method: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method, updated=())  # so that inspect.signature still gives the model's own
        self._layer = layer
        self._method = method
        self._name = layer.target.candidates or ""
        parameters = inspect.signature(method).parameters if self._name else {}
        self._place = list(parameters).index(self._name) if self._name else None
        if self._name and parameters[self._name].kind is inspect.Parameter.KEYWORD_ONLY:
            self._place = sys.maxsize  # after any number of positional arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer
        if torch.compiler.is_compiling():
            if sum(name.startswith(CHILD) for name in layer.base_layer._modules) > 1:
                raise UnsupportedError(
                    f"{layer.target.module or 'the model'!r} has several masked methods, of which one may call "
                    "another: name the one that is compiled alone in target_outputs."
                )
            return layer(self._method(*args, **kwargs), self._chosen(args, kwargs))
        call, running = _Call(layer.base_layer), _CALLS.running
        running.append(call)
        try:
            result = self._method(*args, **kwargs)
        finally:
            running.pop()
        if call.masked:
            return result
        masked = layer(result, self._chosen(args, kwargs), layer.target.in_place)
        if masked is not result or layer.target.in_place:
            for outer in running:
                outer.masked |= outer.module is call.module
        return masked

    def _chosen(self, args: Any, kwargs: Any) -> Tensor | None:
        if self._place is None:
            return None
        found: Tensor | None = args[self._place] if self._place < len(args) else kwargs.get(self._name)
        return found


class RefuseOtherWays:
    """A forward pre-hook on a module inside one whose output is masked."""

    def __init__(self, layer: MaskedOutput, name: str) -> None:
        self._layer = layer
        self._name = name

    def __call__(self, module: nn.Module, args: Any) -> None:
        layer, target = self._layer, self._layer.target
        if torch.compiler.is_compiling() or in_backward():
            return
        if any(call.module is layer.base_layer for call in _CALLS.running):
            return
        masked = not layer._disable_adapters and layer.context.is_masking_entry(
            layer.module_name, layer.request_mask_specs
        )
        if masked or layer.merged_masks:
            raise RequestError(
                f"the module {self._name!r} inside {target.module or 'the model'!r} was called by another way than "
                f"{target.method!r}, to whose result the request's masks are added: what it gives would not follow the "
                f"request. Call {target.method!r}, or name the other method in target_outputs; what needs no request, "
                "call outside the request's block."
            )


def hooked_modules(model: nn.Module, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules inside a module, by name, that compute with parameters of their own, and for it alone.

    One that a module elsewhere in the model holds, too, such as an embedding, is called there as well. A hook would
    take an ``nn.TransformerEncoderLayer`` off torch's fused path, whose bits differ, so none is put inside.
    """
    inside = {id(owner) for owner in module.modules()}
    elsewhere = {id(child) for owner in model.modules() if id(owner) not in inside for child in owner.children()}

    def below(owner: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in owner.named_children():
            if isinstance(child, (MaskedOutput, nn.TransformerEncoderLayer)) or id(child) in elsewhere:
                continue
            # Not inside a masked layer: a hook there would cost it its fast way.
            if isinstance(child, RequestMaskLayer) or any(True for _ in child.parameters(recurse=False)):
                yield prefix + name, child
            else:
                yield from below(child, f"{prefix}{name}.")

    return [] if isinstance(module, nn.TransformerEncoderLayer) else list(below(module, ""))


def _chosen(values: Tensor, chosen: Tensor) -> Tensor:
    if chosen.dim() == 1:
        return values[:, chosen]
    return values.expand(len(chosen), -1)[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]


def _item(result: Any, field: str) -> Any:
    return result.get(field) if isinstance(result, Mapping) else getattr(result, field, None)


def _fields(result: Any) -> list[str]:
    if isinstance(result, Mapping):
        return sorted(map(str, result))
    if dataclasses.is_dataclass(result):
        return [item.name for item in dataclasses.fields(result)]
    return list(getattr(result, "_fields", ()))
