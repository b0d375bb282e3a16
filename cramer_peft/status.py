"""What there is to say of an adapted model: parameters, and the state of its layers and adapters.

PEFT's own functions do the counting, so that both doors report the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from peft.peft_model import (
    PeftModel,
    TunerLayerStatus,
    TunerModelStatus,
    get_layer_status,
    get_model_status,
)

if TYPE_CHECKING:
    from cramer_peft.model import RequestMaskModel


def count_parameters(masks: RequestMaskModel) -> tuple[int, int]:
    """Numbers of trainable parameters and of all."""
    trainable, total = PeftModel.get_nb_trainable_parameters(masks)
    return int(trainable), int(total)


def describe_parameters(masks: RequestMaskModel) -> str:
    """Both numbers and their ratio, in PEFT's words."""
    trainable, total = count_parameters(masks)
    share = 100 * trainable / total
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"


def layer_status(masks: RequestMaskModel) -> list[TunerLayerStatus]:
    """One status for each masked layer, and for each module of ``modules_to_save``."""
    return list(get_layer_status(masks))


def model_status(masks: RequestMaskModel) -> TunerModelStatus:
    """The status of all layers together, with the types that PEFT finds out of a ``PeftModel`` only."""
    return replace(
        get_model_status(masks),
        base_model_type=type(masks.model).__name__,
        adapter_model_type=type(masks).__name__,
        peft_types={name: config.peft_type.value for name, config in masks.peft_config.items()},
    )
