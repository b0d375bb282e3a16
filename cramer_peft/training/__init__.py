"""What training a generator needs beside ``transformers.Trainer``."""

from cramer_peft.training.callbacks import TemperatureCallback
from cramer_peft.training.checkpoints import Checkpoints
from cramer_peft.training.losses import SparsityLoss, minimal_edit_loss

__all__ = ["Checkpoints", "SparsityLoss", "TemperatureCallback", "minimal_edit_loss"]
