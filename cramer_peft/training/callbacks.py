"""The temperature of the form ``topk`` while a generator is trained, from any loop or by ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cramer_peft.errors import ConfigError
from cramer_peft.masks import SCHEDULES, TopKForm
from cramer_peft.model import RequestMaskModel


def set_temperature(masks: RequestMaskModel, done: float) -> float | None:
    """Set the straight-through temperature of the active adapter, at the start of a training step; return it.

    It goes from ``temperature_start`` to ``temperature_end`` by ``temperature_schedule`` of the configuration, in the
    paper from 0.7 to 0.3 by a half cosine (CRAMER, ICML 2026, section "Gradient"). Forms other than ``topk`` have no
    temperature: nothing happens, and None is returned.

    Args:
        masks: The model in training.
        done: Share of the training that is done, from 0 to 1: ``step / max(steps - 1, 1)``.

    Raises:
        ConfigError: If ``done`` is no share.
    """
    if not 0 <= done <= 1:
        raise ConfigError(f"done: found {done!r}, expected the share of the training that is done, from 0 to 1.")
    form = masks.generator.form
    if not isinstance(form, TopKForm):
        return None
    config = masks.peft_config[masks.active_adapters[0]]
    start, end = config.temperature_start, config.temperature_end
    assert start is not None
    assert end is not None
    form.temperature = SCHEDULES[config.temperature_schedule or "cosine"](start, end, done)
    return form.temperature


class TemperatureCallback(TrainerCallback):
    """Calls :func:`set_temperature` at every step of a ``Trainer``.

    Args:
        masks: The model in training.
    """

    def __init__(self, masks: RequestMaskModel) -> None:
        self._masks = masks

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the temperature for the step that begins; the last step runs at the end temperature."""
        set_temperature(self._masks, min(state.global_step / max(state.max_steps - 1, 1), 1.0))
