"""Measure the peak memory of one call, as torch allocates it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmark.speed.timing import Row


def peak_bytes(row: Row, device: str = "cpu") -> int:
    """Return the most memory that torch's allocations during one call hold at once, in bytes.

    On the CPU torch's profiler notes every allocation and release, so that the number does not depend on the machine
    or on earlier calls. Memory that is not torch's (Python's, scratch space of the matrix library) does not count.
    On a CUDA device torch's allocator counts.
    """
    argument = row.prepare()
    if device != "cpu":
        return _peak_on_cuda(row, argument)
    with torch.no_grad(), row.around():
        row.run(argument)
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            row.run(argument)
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    assert results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _peak_on_cuda(row: Row, argument: Any) -> int:
    with torch.no_grad(), row.around():
        row.run(argument)
        gc.collect()  # memory that is freed by chance in the call would hide some of it
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        row.run(argument)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the lines that the profiler's C++ part writes to standard error at every start and stop."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the size of all parameters and buffers of some modules in bytes, each tensor counted once."""
    sizes = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            sizes[tensor.data_ptr()] = tensor.nbytes
    return sum(sizes.values())
