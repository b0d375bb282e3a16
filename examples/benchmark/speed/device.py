"""The devices of the speed benchmark: check one, name it, move inputs to it, wait for it."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import DataError

DEVICES = ("cpu", "cuda")


def check_device(device: str, clock: str) -> None:
    """Check that a device is there and that the clock can time it.

    Raises:
        DataError: If there is no such device, or the clock does not include its work.
    """
    if device not in DEVICES:
        raise DataError(f"device: found {device!r}, expected one of {list(DEVICES)}.")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise DataError(
            f"device: found {device!r}, but torch {torch.__version__} sees no CUDA device. Use --device cpu, or "
            "install a torch built for CUDA on a machine that has one."
        )
    if clock == "cpu":
        raise DataError("clock: found 'cpu' with device 'cuda', whose work is no processor time; expected 'wall'.")


def device_name(device: str | torch.device) -> str:
    """Return the device's own name; the kind of processor for the CPU."""
    kind = torch.device(device).type
    return torch.cuda.get_device_name() if kind == "cuda" else platform.machine()


def synchronise(device: str | torch.device) -> None:
    """Wait until a device has done all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def moved(value: Any, device: str | torch.device) -> Any:
    """Return a tensor, or a dictionary of tensors, on a device; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    return value
