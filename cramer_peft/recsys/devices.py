"""Devices: where a model is, and where it would run fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def device_of(model: Any) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has none."""
    parameters = getattr(model, "parameters", None)
    found = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if found is None else found.device


def brought_to(model: Any, item_ids: Tensor) -> Tensor:
    """Return histories on the device of the model."""
    return item_ids.to(device_of(model))


def fastest_device() -> torch.device:
    """Return the accelerator that the Trainer would use; the CPU if there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found
