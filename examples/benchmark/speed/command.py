"""The command ``python -m benchmark.speed``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

_WIDTH = 100  # of the tables, where there is no terminal


def speed(
    output: Annotated[Path, typer.Option(help="JSON file that the figures are written to.")] = Path("speed.json"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model, may be repeated: sasrec-64, sasrec-256, bert4rec-64, bert4rec-256, replay-sasrec-64, "
            "decoder. Without it, both of SASRec."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size, may be repeated. Without it, 1, 32, 256 and 1024.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Form of mask, may be repeated: scale, signed, topk, low_rank:RANK. Without it, signed and low_rank:4."
        ),
    ] = None,
    adapters: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Number of LoRA adapters in one batch, may be repeated. Without it, 4, 16, 64 and 256."
        ),
    ] = None,
    different: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Number of different requests in one batch, may be repeated. Without it, 4, 32, 256 and 1024."
        ),
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only rows whose name holds this text; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of calls for each row.")] = 15,
    compiled: Annotated[bool, typer.Option(help="Whether to time compiled models, too.")] = True,
    peft: Annotated[bool, typer.Option(help="Whether to time PEFT's adapters, too.")] = True,
    memory: Annotated[bool, typer.Option(help="Whether to measure peak memory, too.")] = True,
    startup: Annotated[bool, typer.Option(help="Whether to time importing and injecting, too.")] = True,
    clock: Annotated[
        str, typer.Option(help="wall, or cpu: time on the processor, which other processes disturb less.")
    ] = "wall",
    device: Annotated[
        str, typer.Option(help="Where the models run: cpu or cuda. On cuda there are rows for CUDA graphs, too.")
    ] = "cpu",
    graphs: Annotated[bool, typer.Option(help="Whether to time CUDA graphs, too, on cuda.")] = True,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. Without it, torch's own number.")
    ] = None,
) -> None:
    """Time requests in pairs with the frozen model, and PEFT's adapters beside them."""
    import torch

    from benchmark.speed.run import SpeedOptions, run_speed
    from benchmark.speed.startup import startup_figures
    from cramer_peft.storage import write_json

    if threads is not None:
        torch.set_num_threads(threads)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    options = SpeedOptions(
        rounds=rounds, compiled=compiled, peft=peft, memory=memory, clock=clock, device=device, graphs=graphs
    )
    lists: dict[str, Any] = {"models": model, "batches": batch, "gates": gate, "rows": row}
    lists |= {"adapters": adapters, "different": different}
    chosen: dict[str, Any] = {name: tuple(given) for name, given in lists.items() if given}
    options = replace(options, **chosen)
    report = run_speed(options, lambda line: console.print(f"[bold]•[/bold] {escape(line)}", highlight=False), output)
    if startup:
        report["startup"] = startup_figures(rounds)
    write_json(output, report)
    _show(console, report)
    console.print(f"Written to {output}", highlight=False, markup=False)


def _show(console: Console, report: dict[str, Any]) -> None:
    from benchmark.speed.report import check_line, table

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
