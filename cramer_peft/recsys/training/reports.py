"""Reports of a training to TensorBoard, Weights & Biases, MLflow and the like, by transformers' own callbacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from cramer_peft.errors import ConfigError, MissingExtraError
from cramer_peft.training import ResumableTrainer

ReportTo = str | Sequence[str] | None
_EVERY = 10  # steps from one report to the next
_FOLDER = "runs"  # where TensorBoard looks, too


def report_arguments(report_to: ReportTo, name: str = "") -> dict[str, Any]:
    """Return the ``TrainingArguments`` that report a training under a name.

    Raises:
        ConfigError: If there is no such tool.
        MissingExtraError: If its package is not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if names in ([], ["none"]):
        return {"report_to": "none", "logging_strategy": "no"}
    for tool in () if names == ["all"] else names:
        if tool not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(
                f"report_to: found {tool!r}, expected 'none', 'all' or {', '.join(INTEGRATION_TO_CALLBACK)}."
            )
        if tool not in get_available_reporting_integrations():
            raise MissingExtraError(f"report_to: {tool!r} needs a package that is not installed: pip install {tool}")
    return {"report_to": names, "run_name": name, "logging_strategy": "steps", "logging_steps": _EVERY}


def train_and_report(trainer: ResumableTrainer) -> None:
    """Train, and report it as a run of its own, so that two trainings do not end up in one curve.

    TensorBoard's files go to a folder in ``TENSORBOARD_LOGGING_DIR``, or else in ``runs`` in the current folder.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            run = f"{trainer.args.run_name}-{datetime.now():%Y-%m-%d_%H-%M-%S}"
            callback.logging_dir = os.path.join(callback.logging_dir or _FOLDER, run)
    wandb: Any = sys.modules.get("wandb") if "wandb" in trainer.args.report_to else None
    ends = wandb is not None and wandb.run is None  # else the run is the caller's
    trainer.train_or_resume()
    if ends:
        wandb.finish()
