"""The command ``python -m benchmark``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from benchmark.cells import CellResult
    from benchmark.plan import Job, PlanOptions

_WIDTH = 110  # of the tables, where there is no terminal


def benchmark(
    matrix: Annotated[
        str, typer.Option(help="full, headline, others, backbones, real-language, transfer or quick.")
    ] = "full",
    output: Annotated[Path, typer.Option(help="Folder of the results; what is done there is not run again.")] = Path(
        "benchmark"
    ),
    data: Annotated[
        list[str] | None,
        typer.Option(help="movielens-100k, movielens-1m or a folder of atomic files; may be repeated."),
    ] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="leave-one-out or temporal; may be repeated.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="sasrec, bert4rec, gru4rec or replay-sasrec; may be repeated.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this ablation or hold-out of ours; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each generator's training.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of each backbone's training.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Request encoder, for example all-minilm-l6-v2.")] = None,
    max_users: Annotated[int | None, typer.Option(min=2, help="Most test users measured, drawn by the seed.")] = None,
    language_model: Annotated[
        str | None, typer.Option(help="Causal language model of the reranker: a folder, or a name in the local cache.")
    ] = None,
    dialogues: Annotated[
        str | None, typer.Option(help="File of film dialogues (ReDial's requests), for the matrix real-language.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The other data set or folder, for the matrix transfer.")] = None,
    same_items: Annotated[
        bool, typer.Option("--same-items", help="Equal titles are the same item in both data sets of a transfer.")
    ] = False,
    full_training: Annotated[
        bool, typer.Option("--full-training", help="Compare a transfer with all steps on the target alone, too.")
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(help="validation (default) or, once all is settled, test: for real-language and transfer."),
    ] = None,
    title_column: Annotated[str | None, typer.Option(help="Column of the .item file that holds titles.")] = None,
    attribute_column: Annotated[str | None, typer.Option(help="Column of the .item file with attributes.")] = None,
    attribute_separator: Annotated[str | None, typer.Option(help="What separates an item's attributes.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 2,
    budget_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Run only what is thought to fit; the rest is for the next run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what it would cost, and stop.")] = False,
) -> None:
    """Compare methods on real data, cell by cell; say first what it will cost."""
    from transformers.utils.logging import disable_progress_bar

    from benchmark.cells import CellSettings, DataSource
    from benchmark.plan import PlanOptions

    disable_progress_bar()  # of files that take milliseconds
    columns = title_column, attribute_column, attribute_separator
    options = PlanOptions(
        matrix=matrix,
        sources=tuple(DataSource(name, *columns) for name in data or ()),
        protocols=tuple(protocol or ()),
        backbones=tuple(backbone or ()),
        methods=tuple(method or ()) or (("ours",) if variant else ()),
        variants=tuple(variant or ()),
        seeds=tuple(seed or ()),
        steps=steps,
        epochs=epochs,
        settings=CellSettings(encoder=encoder, max_users=max_users, language_model=language_model),
        dialogues=dialogues,
        target=None if target is None else DataSource(target),
        same_items=same_items,
        full_training=full_training,
        stage=stage,
    )
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    run_benchmark(options, output, workers, budget_minutes, dry_run, console)


def run_benchmark(
    options: PlanOptions,
    output: Path,
    workers: int = 1,
    budget_minutes: float | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[CellResult]:
    """Plan, say what it costs, run what is not done, report.

    Args:
        options: What to run.
        output: Folder of the results.
        workers: Processes.
        budget_minutes: Of wall time; None: no limit.
        dry_run: Whether to stop after the costs.
        console: Where to print.

    Returns:
        The up-to-date results of the plan's cells; none in a dry run.

    Raises:
        CramerError: If the plan or its data cannot be used, or nothing fits the budget.
    """
    from benchmark.plan import plan_cells, within
    from benchmark.plots import write_plots
    from benchmark.report import write_report
    from benchmark.run import load_results, plan_jobs

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
    command = shlex.join([Path(sys.argv[0]).name, *map(_without_place, sys.argv[1:])])
    settings = _plain(asdict(replace(options, sources=(), target=None, dialogues=None)))
    document = write_report(results, output, command, time.perf_counter() - start, settings)
    for found in [*([result_table(document)] if document["groups"] else []), *study_tables(document)]:
        console.print(found)
    tracks = [result.document() for result in results if result.status == "done" and "study" not in result.cell]
    write_plots(tracks, output / "plots")
    console.print(f"Written to {output}: results.md, results.json, plots, cells", highlight=False, markup=False)
    return results


def _run(jobs: Sequence[Job], output: Path, workers: int, budget_minutes: float | None, console: Console) -> None:
    from benchmark.run import run_jobs

    bar = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*bar, console=console, transient=True) as progress:
        task = progress.add_task("cells", total=len(jobs), completed=sum(job.stored for job in jobs))
        started: Callable[[Job], None] = lambda job: progress.update(task, description=escape(job.label))  # noqa: E731
        for outcome in run_jobs(jobs, output, workers, budget_minutes, started):
            progress.advance(task)
            line = f"{outcome.job.cell.name if not outcome.job.backbone else outcome.job.cell.backbone_name}: "
            line += f"{'backbone, ' if outcome.job.backbone else ''}{outcome.status}, {outcome.seconds:.0f} s"
            progress.console.print(
                escape(line + (f" ({outcome.reason})" if outcome.reason else "")), highlight=False, soft_wrap=True
            )


def _without_place(argument: str) -> str:
    """An argument of the command; of a folder its name alone."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def cost_table(jobs: Sequence[Job], workers: int) -> Table:
    """What is to be run and how long it is thought to take."""
    table = Table(title="What it will cost, by table and by what finished cells took")
    for name in ("data", "split", "backbone", "what", "runs", "done", "seconds each", "minutes left"):
        table.add_column(name, justify="left" if name in ("data", "split", "backbone", "what") else "right")
    rows: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        cell = job.cell
        rows.setdefault((cell.source.name, cell.protocol, cell.backbone, job.label), []).append(job)
    for row, same in rows.items():
        left = sum(job.seconds for job in same if not job.stored)
        each = sum(job.seconds for job in same) / len(same)
        done = sum(job.stored for job in same)
        table.add_row(*map(escape, row), str(len(same)), str(done), f"{each:.0f}", f"{left / 60:.1f}")
    seconds = sum(job.seconds for job in jobs if not job.stored)
    cells = [job for job in jobs if not job.backbone]
    table.add_section()
    table.add_row(
        "all", "", "", f"{workers} at a time: about {seconds / 60 / workers:.0f} min", str(len(cells)),
        str(sum(job.stored for job in cells)), "", f"{seconds / 60:.1f}",
    )  # fmt: skip
    return table


def study_tables(document: dict[str, Any]) -> list[Table]:
    """What real language and transfer found, with intervals."""
    tables = []
    for study in document["studies"]:
        table = Table(title=", ".join((*study["place"], study["study"])))
        for number, name in enumerate(study["head"]):
            table.add_column(name, justify="right" if number else "left")
        for row in study["rows"]:
            table.add_row(*map(escape, row))
        tables.append(table)
    return tables


def result_table(document: dict[str, Any]) -> Table:
    """The figures that matter most, a row for each method."""
    columns = {
        "NDCG@10": ("truthful", "ndcg"),
        "× frozen": ("truthful", "ndcg_ratio"),
        "for: gain": ("for", "normalised_gain"),
        "retention": ("for", "retention"),
        "favourite: ratio": ("against favourite", "ratio"),
        "empty": ("empty", "overlap"),
    }
    table = Table(title="Simulated requests; whole catalogue ranked, seen items removed")
    several = len({group["backbone"] for group in document["groups"]}) > 1
    for name in ("data", "split", *(["backbone"] if several else []), "method", "seeds"):
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right")
    for group in document["groups"]:
        found = [group["tracks"].get(track, {}).get(metric) for track, metric in columns.values()]
        label = group["method"] if group["variant"] is None else f"{group['method']}: {group['variant']}"
        place = [group["data"], group["protocol"], *([group["backbone"]] if several else [])]
        row = [*place, label, " ".join(map(str, group["seeds"]))]
        table.add_row(*map(escape, row), *("" if entry is None else f"{entry['value']:.3f}" for entry in found))
    return table
