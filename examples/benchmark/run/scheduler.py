"""Order the jobs of a plan, run those that are not stored, and load the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmark.cell_files import CellResult, stored_result
from benchmark.cells import Cell
from benchmark.data import LoadedData, load_data
from benchmark.plan.budget import Job
from benchmark.plan.costs import Timing, estimate_backbone, estimate_cell, refined
from benchmark.run.backbones import backbone_seconds
from benchmark.run.run_cell import digest_of
from benchmark.run.run_job import Outcome, failed
from benchmark.run.workers import Workers
from benchmark.studies import estimate_study
from cramer_peft.errors import DataError


def seconds_of(cell: Cell, data: LoadedData) -> float:
    """Return the seconds that a cell takes by the table of costs, without its backbone."""
    return estimate_cell(cell, data.size) if cell.study is None else estimate_study(cell, data)


def plan_jobs(cells: Iterable[Cell], output: Path) -> list[Job]:
    """Return backbones and cells in order, each backbone before the first cell that needs it, with estimates.

    Raises:
        CramerError: If data cannot be loaded or split.
    """
    cells = list(cells)
    timings, jobs, prepared = _stored_timings(cells, output), [], set()
    for cell in cells:
        data = load_data(cell.source, cell.protocol)
        for needed in cell.with_backbones:
            if needed.backbone_name not in prepared:
                prepared.add(needed.backbone_name)
                size = load_data(needed.source, needed.protocol).size
                seconds = refined(needed.source.name, "backbone", estimate_backbone(needed, size), timings)
                jobs.append(Job(needed, True, seconds, backbone_seconds(needed, output) is not None))
        seconds = refined(cell.source.name, cell.kind, seconds_of(cell, data), timings)
        jobs.append(Job(cell, False, seconds, stored_result(output, cell, digest_of(cell, data)) is not None))
    return jobs


def _stored_timings(cells: Iterable[Cell], output: Path) -> list[Timing]:
    """Return the timings of the cells that are done and of their backbones."""
    timings, backbones = [], set()
    for cell in cells:
        data = load_data(cell.source, cell.protocol)
        for needed in cell.with_backbones:
            if needed.backbone_name not in backbones:
                backbones.add(needed.backbone_name)
                found = backbone_seconds(needed, output)
                if found is not None:
                    size = load_data(needed.source, needed.protocol).size
                    timings.append(Timing(needed.source.name, "backbone", estimate_backbone(needed, size), found))
        stored = stored_result(output, cell, digest_of(cell, data))
        if stored is not None:
            seconds = sum(stored.figures["seconds"][part] for part in ("train", "evaluate"))
            timings.append(Timing(cell.source.name, cell.kind, seconds_of(cell, data), seconds))
    return timings


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    workers: int = 1,
    budget_minutes: float | None = None,
    started: Callable[[Job], None] = lambda job: None,
) -> Iterator[Outcome]:
    """Run the jobs that are not stored; yield each outcome when it is there.

    A cell waits for its backbones; if one fails, its cells fail with the same reason. No job is started that would,
    by its estimate, end after the budget.

    Args:
        jobs: Return value of :func:`plan_jobs`.
        output: Folder of the results.
        workers: Processes; 1: this one, with as many threads as torch has. More: one thread each.
        budget_minutes: Minutes by the clock; None: no limit.
        started: Called with each job when it starts.
    """
    output.mkdir(parents=True, exist_ok=True)
    pending = [job for job in jobs if not job.stored]
    untrained = {job.cell.backbone_name for job in pending if job.backbone}
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    timings: list[Timing] = []
    with Workers(workers) as processes:
        while pending or processes.busy:
            while processes.busy < workers:
                job = _next(pending, untrained, deadline, timings)
                if job is None:
                    break
                pending.remove(job)
                started(job)
                processes.submit(job, output)
            if not processes.busy:
                return  # the remaining jobs do not fit the budget, or wait for one that does not
            for outcome in processes.outcomes(output):
                if outcome.status == "done":
                    timings.append(_timing(outcome))
                yield outcome
                if outcome.job.backbone:
                    yield from _after_backbone(outcome, pending, untrained, output)


def _next(pending: Sequence[Job], untrained: set[str], deadline: float | None, timings: Sequence[Timing]) -> Job | None:
    left = float("inf") if deadline is None else deadline - time.monotonic()
    for job in pending:
        seconds = refined(job.cell.source.name, job.kind, job.seconds, timings)
        if (job.backbone or not _needs(job.cell) & untrained) and seconds <= left:
            return job
    return None


def _needs(cell: Cell) -> set[str]:
    return {needed.backbone_name for needed in cell.with_backbones}


def _timing(outcome: Outcome) -> Timing:
    return Timing(outcome.job.cell.source.name, outcome.job.kind, outcome.job.seconds, outcome.seconds)


def _after_backbone(outcome: Outcome, pending: list[Job], untrained: set[str], output: Path) -> Iterator[Outcome]:
    """Release the cells that waited for a backbone, or fail them with its reason."""
    name = outcome.job.cell.backbone_name
    if outcome.status == "done":
        untrained.discard(name)
        return
    reason = f"its backbone could not be trained: {outcome.reason}"
    for job in [job for job in pending if not job.backbone and name in _needs(job.cell)]:
        pending.remove(job)
        yield failed(job, output, outcome.status, reason)


def load_results(cells: Iterable[Cell], output: Path) -> list[CellResult]:
    """Return the stored results of cells that are up to date: done, empty or failed."""
    found = []
    for cell in cells:
        try:
            result = CellResult.load(output, cell.name)
        except DataError:
            continue
        if result.digest == digest_of(cell, load_data(cell.source, cell.protocol)):
            found.append(result)
    return found
