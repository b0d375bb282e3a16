"""Versions of the packages that figures depend on."""

from __future__ import annotations

import platform

import peft
import torch
import transformers

import cramer_peft


def versions() -> dict[str, str]:
    """Return the versions by name, for files with results."""
    return {
        "cramer-peft": cramer_peft.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
