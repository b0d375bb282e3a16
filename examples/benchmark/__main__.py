"""Compare methods on real data: ``python -m benchmark``, from the folder ``examples``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.console import run_command


def benchmark(
    matrix: Annotated[
        str | None,
        typer.Option(
            help="full (default), headline, others, backbones, real-language, transfer, stated, paper or quick."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the results; cells that are done are not run again.")] = Path(
        "benchmark-results"
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
    seed: Annotated[list[int] | None, typer.Option(help="Seed; may be repeated.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of each backbone's training.")] = None,
    max_users: Annotated[int | None, typer.Option(min=2, help="Most test users measured, drawn by the seed.")] = None,
    stage: Annotated[
        str | None,
        typer.Option(help="validation or test, of real-language and transfer (default: validation), stated and paper."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with more settings, listed in docs/benchmark.md; options win.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cost, and stop.")] = False,
) -> None:
    """Compare methods on real data, cell by cell. The cost is shown before anything runs."""
    from transformers.utils.logging import disable_progress_bar

    from benchmark.config_file import read_config
    from benchmark.run_benchmark import run_benchmark, terminal
    from benchmark.settings import BenchmarkSettings

    disable_progress_bar()  # it shows files that take milliseconds
    options: dict[str, Any] = {"matrix": matrix, "epochs": epochs, "max_users": max_users, "stage": stage}
    lists = {"data": data, "protocols": protocol, "backbones": backbone, "methods": method, "seeds": seed}
    options |= {name: tuple(values) if values else None for name, values in lists.items()}
    settings = BenchmarkSettings() if config is None else read_config(config, BenchmarkSettings)
    settings = replace(settings, **{name: value for name, value in options.items() if value is not None})
    plan = settings.plan_options()
    run_benchmark(plan, output, settings.workers, settings.budget_minutes, dry_run, terminal())


if __name__ == "__main__":
    run_command(benchmark)
