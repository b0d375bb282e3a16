"""Run a benchmark from plan to report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmark.cell_files import CellResult
from benchmark.cells import CellSettings
from benchmark.plan.budget import Job, within
from benchmark.plan.planner import PlanOptions, plan_cells
from benchmark.report.plots import write_plots
from benchmark.report.request_plots import write_request_plots
from benchmark.report.terminal import cost_table, result_table, study_tables
from benchmark.report.write_report import write_report
from benchmark.run.run_job import Outcome
from benchmark.run.scheduler import load_results, plan_jobs, run_jobs

_WIDTH = 110  # of the tables, if the output is no terminal


def terminal() -> Console:
    """Return a console on the standard output."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def run_benchmark(
    options: PlanOptions,
    output: Path,
    workers: int = 1,
    budget_minutes: float | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[CellResult]:
    """Plan the cells, show their cost, run those that are not stored, and report.

    Args:
        options: Options of the plan.
        output: Folder of the results.
        workers: Processes.
        budget_minutes: Minutes by the clock; None: no limit.
        dry_run: Whether to stop after the costs.
        console: Console to print to; None: nothing is printed.

    Returns:
        The up-to-date results of the plan's cells; none in a dry run.

    Raises:
        CramerError: If the plan or its data cannot be used, or nothing fits the budget.
    """
    console = console or Console(quiet=True)
    start = time.perf_counter()
    cells = plan_cells(options)
    jobs = plan_jobs(cells, output)
    console.print(cost_table(jobs, workers))
    chosen = jobs
    if budget_minutes is not None:
        chosen, cut = within(jobs, budget_minutes, workers)
        if cut:
            console.print(
                f"{len(cut)} of {sum(not job.backbone for job in jobs)} cells do not fit {budget_minutes:g} minutes; "
                "they are left for the next run: the same command goes on where this one stops.",
                highlight=False,
            )
    if dry_run:
        return []
    _run(chosen, output, workers, budget_minutes, console)
    results = load_results(cells, output)
    command = shlex.join(["python", "-m", "benchmark", *map(_without_folder, sys.argv[1:])])
    settings = _as_json(asdict(replace(options, sources=(), target=None, dialogues=None, settings=_named(options))))
    document = write_report(results, output, command, time.perf_counter() - start, settings)
    for found in [*([result_table(document)] if document["groups"] else []), *study_tables(document)]:
        console.print(found)
    tracks = [result.document() for result in results if result.status == "done" and "study" not in result.cell]
    write_plots(tracks, output / "plots")
    write_request_plots(document["studies"], output / "plots")
    console.print(f"Written to {output}: results.md, results.json, plots, cells", highlight=False, markup=False)
    return results


def _run(jobs: Sequence[Job], output: Path, workers: int, budget_minutes: float | None, console: Console) -> None:
    bar = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*bar, console=console, transient=True) as progress:
        task = progress.add_task("cells", total=len(jobs), completed=sum(job.stored for job in jobs))

        def started(job: Job) -> None:
            progress.update(task, description=escape(job.label))

        for outcome in run_jobs(jobs, output, workers, budget_minutes, started):
            progress.advance(task)
            progress.console.print(escape(_line(outcome)), highlight=False, soft_wrap=True)


def _line(outcome: Outcome) -> str:
    cell, backbone = outcome.job.cell, outcome.job.backbone
    name = f"{cell.backbone_name}: backbone" if backbone else cell.name
    line = f"{name}{', ' if backbone else ': '}{outcome.status}, {outcome.seconds:.0f} s"
    return line + (f" ({outcome.reason})" if outcome.reason else "")


def _named(options: PlanOptions) -> CellSettings:
    """Return the settings of all cells, with the last part alone of an encoder's folder."""
    encoder = options.settings.encoder
    return replace(options.settings, encoder=None if encoder is None else _without_folder(encoder))


def _without_folder(argument: str) -> str:
    """Return an argument of the command; of an absolute path only its last part."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _as_json(value: Any) -> Any:
    """Return a value with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value
