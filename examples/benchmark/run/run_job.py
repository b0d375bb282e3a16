"""Run one job and catch its errors."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from benchmark.cell_files import CellResult, Status
from benchmark.data import load_data
from benchmark.plan.budget import Job
from benchmark.run.backbones import prepare_backbone
from benchmark.run.run_cell import NOT_HERE, digest_of, run_cell
from cramer_peft.errors import CramerError


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job.

    Attributes:
        job: The job.
        status: "done", "empty" or "failed".
        reason: Why it is not done.
        seconds: Time that it took.
    """

    job: Job
    status: Status
    reason: str | None
    seconds: float


def run_job(job: Job, output: Path) -> Outcome:
    """Run one job; any error is in the outcome, and a failed cell is written as such."""
    start = time.perf_counter()
    status: Status = "done"
    reason: str | None = None
    try:
        if job.backbone:
            prepare_backbone(job.cell, output)
        else:
            result = run_cell(job.cell, output)
            status, reason = result.status, result.reason
    except NOT_HERE as error:
        status, reason = "empty", str(error)
    except Exception as error:  # one cell must not take the others along
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        reason = str(error) if isinstance(error, CramerError) else f"{type(error).__name__}: {error}"
        return failed(job, output, "failed", reason, time.perf_counter() - start)
    return Outcome(job, status, reason, time.perf_counter() - start)


def failed(job: Job, output: Path, status: Status, reason: str | None, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a job that was not done; write it if the job is a cell."""
    if not job.backbone:
        digest = digest_of(job.cell, load_data(job.cell.source, job.cell.protocol))
        CellResult(job.cell.identity, digest, status, reason).save(output, job.cell.name)
    return Outcome(job, status, reason, seconds)
