"""Warnings when an adapter is put on: what a configuration says that the user may not expect."""

from __future__ import annotations

import warnings

from torch import nn

from cramer_peft.config import RequestMaskConfig
from cramer_peft.injection.plan import InjectionPlan


def warn_of_surprises(model: nn.Module, given: RequestMaskConfig, plan: InjectionPlan) -> None:
    """Warn of names that match nothing, and of modules that PEFT trains whole without being asked."""
    for finding in plan.unmatched:
        warnings.warn(finding.message, stacklevel=2)
    added = set(given.modules_to_save or []) - set(given.named_to_save)
    there = sorted(name for name in added if any(module.endswith(name) for module, _ in model.named_modules()))
    if there and given.task_type is not None:
        warnings.warn(
            f"PEFT trains copies of {', '.join(there)} beside the masks, because task_type is {given.task_type!r}: "
            "once trained, rows without a request are not the frozen model's. Leave task_type out to train masks "
            "alone, or name these in modules_to_save.",
            stacklevel=2,
        )
