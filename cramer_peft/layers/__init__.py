"""Masked layers, one class per kind of module."""

from cramer_peft.layers.attention import MaskedMultiheadAttention
from cramer_peft.layers.conv import MaskedConvolution1d, MaskedConvolution2d
from cramer_peft.layers.embedding import MaskedEmbedding
from cramer_peft.layers.linear import MaskedConv1D, MaskedLinear
from cramer_peft.layers.masked_layer import RequestMaskLayer
from cramer_peft.layers.recurrent import MaskedRecurrent
from cramer_peft.layers.registry import register_mask_layer

__all__ = [
    "MaskedConv1D",
    "MaskedConvolution1d",
    "MaskedConvolution2d",
    "MaskedEmbedding",
    "MaskedLinear",
    "MaskedMultiheadAttention",
    "MaskedRecurrent",
    "RequestMaskLayer",
    "register_mask_layer",
]
