"""Keeps torch's fused encoder layers from bypassing masks.

In eval mode ``nn.TransformerEncoderLayer`` gives the weights of its modules to one fused kernel, so that no masked
layer inside it is called, and ``nn.TransformerEncoder`` gives it nested tensors if the padding allows. An object
replaces the ``forward`` of such a layer: with a request it runs torch's own unfused code, and otherwise what torch
chooses. Each call decides for itself, because a switch on the layer would race between threads.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.context import RequestContext
from cramer_peft.layers.masked_layer import RequestMaskLayer


class UnfusedForward:
    """The forward of an encoder layer: torch's unfused code if the layer is masked in the current call."""

    def __init__(self, layer: nn.TransformerEncoderLayer, context: RequestContext) -> None:
        self._layer = layer
        self._context = context
        # A second object of the unfused class that shares the layer's attributes: what one writes, the other sees.
        self._unfused = object.__new__(_unfused_class(type(layer)))  # type: ignore[arg-type]
        object.__setattr__(self._unfused, "__dict__", layer.__dict__)
        functools.update_wrapper(
            self, types.MethodType(type(layer).forward, layer)
        )  # inspect.signature keeps giving the layer's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_masked():
            return type(self._layer).forward(self._layer, *args, **kwargs)
        forward = functools.partial(type(self._layer).forward, self._unfused)
        src = args[0] if args else kwargs.get("src")
        if src is not None and src.is_nested and self._layer.self_attn.batch_first:
            return _padded(forward, src, *args[1:], **{name: kwargs[name] for name in kwargs if name != "src"})
        return forward(*args, **kwargs)

    def __reduce__(self) -> tuple[type[UnfusedForward], tuple[nn.TransformerEncoderLayer, RequestContext]]:
        return UnfusedForward, (self._layer, self._context)  # for copies and pickles of the layer

    def _is_masked(self) -> bool:
        return self._context.is_masking() or any(
            isinstance(module, RequestMaskLayer) and len(module.merged_masks) > 0 for module in self._layer.modules()
        )


@functools.cache
def _unfused_class(layer_class: type[nn.TransformerEncoderLayer]) -> type[nn.TransformerEncoderLayer]:
    """Return a subclass of ``layer_class`` that torch never runs by its fused kernel."""
    # torch reads this attribute only to choose the kernel: 0 means an activation that the fused one does not have.
    return type(layer_class.__name__, (layer_class,), {"activation_relu_or_gelu": property(lambda _: 0)})


def _padded(forward: Any, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run ``forward`` on a nested ``src`` (rows, lengths, E), which only the fused kernel takes, by padding it."""
    dense = src.to_padded_tensor(0.0)
    kept = torch.ones_like(src).to_padded_tensor(0.0)[..., 0] > 0
    padding = ~kept
    padding[:, :1] = False  # a row without any position would give NaN, in gradients too
    output = forward(dense, *args, **{**kwargs, "src_key_padding_mask": padding})
    return torch._nested_tensor_from_mask(output, kept, mask_check=False)


def install(model: nn.Module, context: RequestContext) -> list[nn.Module]:
    """Replace the forward of encoder layers that have, or are stacked with, a masked module; returns those changed.

    Layers that have a ``forward`` set on the instance keep it. It may be called again when there are more masks.
    """
    # Layers stacked with a masked one, too, because they may be given a nested tensor that needs gradients.
    holders = [
        module
        for module in model.modules()
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)) and _has_masks(module)
    ]
    layers = dict.fromkeys(
        layer for holder in holders for layer in holder.modules() if isinstance(layer, nn.TransformerEncoderLayer)
    )
    installed: list[nn.Module] = []
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = UnfusedForward(layer, context)  # type: ignore[method-assign, assignment]
            installed.append(layer)
    return installed


def remove(layers: list[nn.Module]) -> None:
    """Undo :func:`install` on ``layers``."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), UnfusedForward):
            del layer.forward


def _has_masks(module: nn.Module) -> bool:
    return any(isinstance(child, RequestMaskLayer) for child in module.modules())
