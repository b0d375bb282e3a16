"""Callbacks for ``transformers.Trainer``."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cramer_peft.masks import TopKForm
from cramer_peft.model import RequestMaskModel


class TemperatureCallback(TrainerCallback):
    """Anneals the straight-through temperature of the form ``topk``, from start to end by a half cosine.

    The paper goes from 0.7 to 0.3 and found the cosine best (CRAMER, ICML 2026, section "Gradient"). For other forms
    it does nothing.

    Args:
        masks: The model in training.
    """

    def __init__(self, masks: RequestMaskModel) -> None:
        self._masks = masks

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature for the step that begins."""
        form = self._masks.generator.form
        if not isinstance(form, TopKForm):
            return
        config = self._masks.peft_config[self._masks.active_adapters[0]]
        start, end = config.temperature_start, config.temperature_end
        assert start is not None
        assert end is not None
        done = state.global_step / max(state.max_steps - 1, 1)  # the last step runs at the end temperature
        form.temperature = end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
