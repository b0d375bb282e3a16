"""Digests that tell one set of frozen weights from another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

# Of larger weights only so many evenly spaced elements are read, to keep loading fast.
_ELEMENTS = 2**20


def update_digest(digest: Any, name: str, weight: Tensor) -> None:
    """Feed a weight's name, shape, dtype and values to a ``hashlib`` digest."""
    digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
    flat = weight.detach().reshape(-1)
    step = -(-flat.numel() // _ELEMENTS)
    digest.update(flat[:: max(step, 1)].contiguous().cpu().view(torch.uint8).numpy().tobytes())


def module_fingerprint(module: nn.Module) -> str:
    """Return a digest of all parameters of a module."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        update_digest(digest, name, parameter)
    return "sha256:" + digest.hexdigest()
