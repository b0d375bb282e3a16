"""Callbacks for ``transformers.Trainer``: the temperature of a form, and lines that tell how far a training is."""

from __future__ import annotations

import sys
import time
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
    config = masks.adapter().config
    start, end = config.temperature_start, config.temperature_end
    assert start is not None
    assert end is not None
    assert config.temperature_schedule is not None
    form.temperature = SCHEDULES[config.temperature_schedule](start, end, done)
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


class ProgressLines(TrainerCallback):
    """Prints a line for each evaluation, or, without evaluations, for each tenth of the steps, to standard error.

    Only the first process prints. A training that ends before its last step says so.
    """

    def __init__(self) -> None:
        self._start, self._first, self._evaluated = 0.0, 0, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._start, self._first, self._evaluated = time.perf_counter(), state.global_step, False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the epoch and its figures."""
        self._evaluated = True
        found = [(name.removeprefix("eval_"), value) for name, value in (metrics or {}).items() if name != "epoch"]
        figures = [f"{name} {value:.4f}" for name, value in found]
        done = f"epoch {_epoch(state, state.global_step)} of {_epoch(state, state.max_steps)}"
        self._print(state, f"{done}: {', '.join([*figures, self._spent()])}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print the step after each tenth of a training that has no epochs to tell of."""
        step, steps = state.global_step, state.max_steps
        if args.eval_strategy == "no" and 10 * step // steps > 10 * (step - 1) // steps:
            left = (time.perf_counter() - self._start) / max(step - self._first, 1) * (steps - step)
            ahead = f", about {left:.0f} s left" if step < steps else ""
            self._print(state, f"step {step:,} of {steps:,}: {self._spent()}{ahead}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print that the training stopped early, and which epoch was the best."""
        best, last = state.best_global_step, _epoch(state, state.global_step)
        if self._evaluated and best is not None:
            early = "stopped early: " if state.global_step < state.max_steps else ""
            self._print(state, f"{early}epoch {_epoch(state, best)} of the {last} was the best")

    def _spent(self) -> str:
        return f"{time.perf_counter() - self._start:.0f} s"

    @staticmethod
    def _print(state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            print(f"  {line}", file=sys.stderr, flush=True)


def _epoch(state: TrainerState, step: int) -> int:
    """Return the number of the epoch that ends at a step."""
    return int(0.5 + step * state.num_train_epochs / max(state.max_steps, 1))
