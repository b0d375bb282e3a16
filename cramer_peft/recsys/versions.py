"""Versions of what figures depend on."""

from __future__ import annotations

import platform

import peft
import torch
import transformers

import cramer_peft


def versions() -> dict[str, str]:
    """What the figures of a run were made with, by name."""
    return {
        "cramer-peft": cramer_peft.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
