"""Time what a request costs: ``python -m benchmark.speed``, from the folder ``examples``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmark.console import run_command

_WIDTH = 100  # of the tables, if the output is no terminal


def speed(
    output: Annotated[Path, typer.Option(help="JSON file that the figures are written to.")] = Path("speed.json"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model, may be repeated: sasrec-64, sasrec-256, bert4rec-64, bert4rec-256, replay-sasrec-64, "
            "decoder. Default: both of SASRec."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size, may be repeated. Default: 1, 32, 256 and 1024.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Form, may be repeated: scale, signed, topk, low_rank:RANK, rows. Default: rows, signed, low_rank:4."
        ),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name contains this text; may be repeated.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Pairs of calls for each row. Default: 15.")] = None,
    compiled: Annotated[bool | None, typer.Option(help="Time compiled models, too. Default: yes.")] = None,
    startup: Annotated[bool, typer.Option(help="Time importing and injecting, too.")] = True,
    clock: Annotated[
        str | None,
        typer.Option(help="wall (default), or cpu: processor time, which other processes disturb less."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of the models: cpu (default) or cuda, where CUDA graphs are timed, too.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own number.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with more settings, listed in docs/speed.md; options win.")
    ] = None,
) -> None:
    """Time requests in pairs with the frozen model, and PEFT's adapters beside them."""
    import torch

    from benchmark.config_file import read_config
    from benchmark.speed.run_speed import SpeedOptions, run_speed
    from benchmark.speed.startup import startup_figures
    from cramer_peft.storage import write_json

    given: dict[str, Any] = {"rounds": rounds, "compiled": compiled, "clock": clock, "device": device}
    lists = {"models": model, "batches": batch, "gates": gate, "rows": row}
    given |= {name: tuple(values) if values else None for name, values in lists.items()}
    options = SpeedOptions() if config is None else read_config(config, SpeedOptions)
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    report = run_speed(options, lambda line: console.print(f"[bold]•[/bold] {escape(line)}", highlight=False), output)
    if startup:
        report["startup"] = startup_figures(options.rounds)
    write_json(output, report)
    _show(console, report)
    console.print(f"Written to {output}", highlight=False, markup=False)


def _show(console: Console, report: dict[str, Any]) -> None:
    from benchmark.speed.figures import check_line, table

    for result in report["results"]:
        console.print(table(result))
        for form, parts in result["split"].items():
            shown = ", ".join(f"{name} {value:.2f} ms" for name, value in parts.items())
            console.print(f"{form}: {shown}", highlight=False)
        for check in result["checks"]:
            console.print(check_line(check), highlight=False)
        for note in result["notes"]:
            console.print(f"{note['row']} is left out: {note['reason']}", highlight=False, markup=False)
    if "startup" in report:
        found = report["startup"]
        console.print(
            f"importing: {found['import']['ratio']:.2f} × importing peft; injecting into {found['layers']:,} linear "
            f"layers: {found['injection_seconds']:.2f} s",
            highlight=False,
        )


if __name__ == "__main__":
    run_command(speed)
