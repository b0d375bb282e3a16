"""Request masks: frozen models that follow a person's words, as a PEFT adapter."""

from cramer_peft.adapter import Adapter
from cramer_peft.checks import validate
from cramer_peft.config import RequestMaskConfig
from cramer_peft.encoders import (
    HashingEncoder,
    PrecomputedEncoder,
    RequestEncoder,
    WordLlamaEncoder,
    register_request_encoder,
)
from cramer_peft.errors import Finding, FindingKind
from cramer_peft.inject import inject_request_masks, load_request_masks
from cramer_peft.layers import RequestMaskLayer, register_mask_layer
from cramer_peft.mask_state import MaskState
from cramer_peft.model import RequestMaskModel
from cramer_peft.tuner.registration import register

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Finding",
    "FindingKind",
    "HashingEncoder",
    "MaskState",
    "PrecomputedEncoder",
    "RequestEncoder",
    "RequestMaskConfig",
    "RequestMaskLayer",
    "RequestMaskModel",
    "WordLlamaEncoder",
    "inject_request_masks",
    "load_request_masks",
    "register_mask_layer",
    "register_request_encoder",
    "validate",
]

register(RequestMaskConfig, RequestMaskModel)
