"""Masked layers, one class per kind of module."""

from cramer_peft.layers.base import RequestMaskLayer
from cramer_peft.layers.linear import MaskedConv1D, MaskedLinear
from cramer_peft.layers.registry import register_mask_layer

__all__ = ["MaskedConv1D", "MaskedLinear", "RequestMaskLayer", "register_mask_layer"]
