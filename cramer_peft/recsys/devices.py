"""Where models are, and where they run fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def device_of(model: Any) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none."""
    parameters = getattr(model, "parameters", None)
    found = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if found is None else found.device


def brought_to(model: Any, item_ids: Tensor) -> Tensor:
    """Histories where the model is."""
    return item_ids.to(device_of(model))


def fastest_device() -> torch.device:
    """The accelerator that the Trainer would use, where there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def fastest_device_name() -> str:
    """What :func:`fastest_device` calls itself, by which seconds are told apart: a GPU's name, or "cpu"."""
    device = fastest_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
