"""Time what a cell costs: its training, and then its measuring."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by the clock, and of this process alone: other work on the machine does not lengthen those."""

    def __init__(self) -> None:
        self._start = self._trained = _now()

    def trained(self) -> None:
        """Tell that the training has ended and the measuring begins."""
        self._trained = _now()

    def seconds(self) -> dict[str, float]:
        """Return the seconds until now: ``train``, ``evaluate``, ``train_cpu``, ``evaluate_cpu``."""
        (start, cpu), (trained, trained_cpu), (end, end_cpu) = self._start, self._trained, _now()
        return {
            "train": trained - start,
            "evaluate": end - trained,
            "train_cpu": trained_cpu - cpu,
            "evaluate_cpu": end_cpu - trained_cpu,
        }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
