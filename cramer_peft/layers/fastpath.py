"""Keeps torch's fused encoder layers from going around masks, call by call.

In eval mode ``nn.TransformerEncoderLayer`` hands the weights of its modules to one fused kernel, so that no
wrapper inside is called, and ``nn.TransformerEncoder`` gives it nested tensors where the padding allows.
Here an object stands in for a layer's ``forward``: while a request is in force it runs torch's own unfused
code, otherwise whatever torch chooses. It holds no state: each call decides for itself.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from cramer_peft.carrier import RequestCarrier
from cramer_peft.layers.base import RequestMaskLayer


class UnfusedForward:
    """An encoder layer's forward, unfused while the layer is masked.

    Args:
        layer: The layer; its class may have a forward of its own that calls torch's.
        carrier: Says whether a request is in force.
    """

    def __init__(self, layer: nn.TransformerEncoderLayer, carrier: RequestCarrier) -> None:
        self._layer = layer
        self._carrier = carrier
        # The same attributes under another class: what one writes, the other sees.
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

    def __reduce__(self) -> tuple[type[UnfusedForward], tuple[nn.TransformerEncoderLayer, RequestCarrier]]:
        return UnfusedForward, (self._layer, self._carrier)  # serves copies and pickles of the layer

    def _is_masked(self) -> bool:
        return self._carrier.masking() or any(
            isinstance(module, RequestMaskLayer) and len(module.merged_gates) > 0 for module in self._layer.modules()
        )


@functools.cache
def _unfused_class(layer_class: type[nn.TransformerEncoderLayer]) -> type[nn.TransformerEncoderLayer]:
    """``layer_class``, as if its activation were one that the fused kernel does not have."""
    # Nothing else of torch's forward reads this attribute: it calls self.activation.
    return type(layer_class.__name__, (layer_class,), {"activation_relu_or_gelu": property(lambda _: 0)})


def _padded(forward: Any, src: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run ``forward`` on a nested ``src`` (rows, lengths, E), which only the fused kernel takes, by padding it."""
    dense = src.to_padded_tensor(0.0)
    kept = torch.ones_like(src).to_padded_tensor(0.0)[..., 0] > 0
    padding = ~kept
    padding[:, :1] = False  # a row without any position would be NaN, in its gradients too
    output = forward(dense, *args, **{**kwargs, "src_key_padding_mask": padding})
    return torch._nested_tensor_from_mask(output, kept, mask_check=False)


def install(model: nn.Module, carrier: RequestCarrier) -> list[nn.Module]:
    """Stand in for the forward of every encoder layer that has, or is stacked with, a masked module.

    Layers that have a ``forward`` set on the instance keep it.

    Args:
        model: A model with its masked layers in place. May be called again when there are more.
        carrier: Says whether a request is in force.

    Returns:
        The layers whose attribute ``forward`` was set, for :func:`remove`.
    """
    # The layers stacked with a masked one, too: they may be given a nested tensor that needs gradients.
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
            layer.forward = UnfusedForward(layer, carrier)  # type: ignore[method-assign, assignment]
            installed.append(layer)
    return installed


def remove(layers: list[nn.Module]) -> None:
    """Undo :func:`install` on ``layers``."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), UnfusedForward):
            del layer.forward


def _has_masks(module: nn.Module) -> bool:
    return any(isinstance(child, RequestMaskLayer) for child in module.modules())
