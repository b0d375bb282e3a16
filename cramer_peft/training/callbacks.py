"""Callbacks for ``transformers.Trainer``: the temperature of a form, and lines that tell how far a training is."""

from __future__ import annotations

import math
import sys
import time
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
