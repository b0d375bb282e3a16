"""Processes that run jobs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmark.plan.budget import Job
from benchmark.run.run_job import Outcome, failed, run_job


class Workers:
    """Run jobs in this process, or in others.

    If one of the others dies, the jobs that were running fail; the rest go on in new processes.

    Args:
        count: Number of processes; 1: this one, with as many threads as torch has. More: one thread each.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._executor: ProcessPoolExecutor | None = None
        self._finished: list[Outcome] = []
        self._running: dict[Future[Outcome], Job] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> int:
        """Number of jobs whose outcome has not been taken yet."""
        return len(self._running) + len(self._finished)

    def submit(self, job: Job, output: Path) -> None:
        """Run a job now, or in one of the other processes."""
        if self._count == 1:
            self._finished.append(run_job(job, output))
            return
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._count, context, _start_worker)
        self._running[self._executor.submit(run_job, job, output)] = job

    def outcomes(self, output: Path) -> list[Outcome]:
        """Wait for at least one job and return the outcomes that there are."""
        found, self._finished = self._finished, []
        if self._count == 1:
            return found
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            job = self._running.pop(future)
            try:
                found.append(future.result())
            except BrokenProcessPool:
                self._executor = None  # its other futures are broken, too; the next job starts a new one
                reason = "its process was ended, perhaps because memory ran out: try workers 1, or a small max_users."
                found.append(failed(job, output, "failed", reason))
        return found


def _start_worker() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the Trainer prints there; open as long as the process runs)
