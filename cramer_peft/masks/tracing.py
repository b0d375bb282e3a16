"""Checks whether torch is tracing or transforming the code that runs, for code that reads values or memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cramer_peft.errors import UnsupportedError


def is_plain(x: Tensor) -> bool:
    """Return True if ``x`` is a plain tensor, and no trace, vmap or forward-mode gradient watches it."""
    return (
        type(x) is Tensor
        and torch._C._get_tracing_state() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and forward_ad._current_level < 0
    )


def trace_refusal(name: str) -> UnsupportedError:
    """Return the error for a trace that would not follow the requests of later calls."""
    return UnsupportedError(
        f"{name} is being traced (torch.jit.trace or torch.fx): the trace would never follow a request. Trace "
        "cramer_peft.export.RequestModule(masks), whose requests are inputs; or trace the frozen model inside "
        "masks.disable_adapter()."
    )


def may_hold_own_operators() -> bool:
    """Return True if the graph that is being traced may hold an operator of this library.

    It may not if it needs gradients, which the operator lacks, or is exported to run without this library.
    """
    exporting = getattr(torch.compiler, "is_exporting", None)  # torch 2.6 cannot tell
    return not torch.is_grad_enabled() and exporting is not None and not exporting()


def computed_once(gates: Tensor) -> Tensor:
    """Return ``gates`` so that a compiled graph computes them once and keeps them in memory.

    Otherwise the compiler would fuse them into the product, and compute them anew at each position of each row.
    """
    if may_hold_own_operators() and gates.device.type == "cpu":
        gates = gates.contiguous()
        return gates.as_strided(gates.shape, gates.stride())  # the compiler writes the input of as_strided to memory
    return gates
