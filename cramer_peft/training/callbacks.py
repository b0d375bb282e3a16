"""Callbacks for ``transformers.Trainer``."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cramer_peft.gates import TopKGate
from cramer_peft.model import RequestMaskModel


class TemperatureCallback(TrainerCallback):
    """Anneals the straight-through temperature of the ``topk`` gate, from start to end by a half cosine.

    (CRAMER, ICML 2026, section "Gradient": 0.7 to 0.3, cosine best.) It does nothing for other gates.

    Args:
        masks: The model in training.
    """

    def __init__(self, masks: RequestMaskModel) -> None:
        self._masks = masks

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature for the step that begins."""
        gate = self._masks.generator.gate
        if not isinstance(gate, TopKGate):
            return
        config = self._masks.peft_config[self._masks.active_adapters[0]]
        start, end = config.temperature_start, config.temperature_end
        assert start is not None
        assert end is not None
        done = state.global_step / max(state.max_steps - 1, 1)  # the last step runs at the end temperature
        gate.temperature = end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
