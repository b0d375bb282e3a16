"""Losses, callbacks and checkpoints to train a generator with ``transformers.Trainer``."""

from importlib import import_module
from typing import TYPE_CHECKING

from cramer_peft.training.callbacks import ProgressLines, TemperatureCallback
from cramer_peft.training.checkpoints import Checkpoints
from cramer_peft.training.losses import SparsityLoss, minimal_edit_loss
from cramer_peft.training.processes import SHARE, Processes, Share

if TYPE_CHECKING:
    from cramer_peft.training.trainer import ResumableTrainer
else:

    def __getattr__(name):
        """Import the trainer when it is first used: ``transformers.Trainer`` takes longer than all the rest here."""
        if name != "ResumableTrainer":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module("cramer_peft.training.trainer").ResumableTrainer


__all__ = [
    "SHARE",
    "Checkpoints",
    "Processes",
    "ProgressLines",
    "ResumableTrainer",
    "Share",
    "SparsityLoss",
    "TemperatureCallback",
    "minimal_edit_loss",
]
