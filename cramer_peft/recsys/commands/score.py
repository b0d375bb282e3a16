"""The command ``cramer-peft score``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cramer_peft.recsys.commands import options as given


def score(
    adapter: given.Adapter,
    rows: Annotated[
        str, typer.Option(help="Parquet file or folder of them: a path, or an address as s3://bucket/rows.")
    ],
    output: Annotated[str, typer.Option(help="Folder of its own for the lists; a path or an address.")],
    k: Annotated[int, typer.Option(min=1, help="Length of the lists.")] = 10,
    strength: Annotated[float, typer.Option(help="Strength of the requests; 0 is the frozen model.")] = 1.0,
    user: Annotated[str, typer.Option(help="Column that tells whose row it is; it is carried through.")] = "user",
    history: Annotated[str, typer.Option(help="Column of lists of item ids, oldest first.")] = "history",
    request: Annotated[str, typer.Option(help='Column of requests; "" for none.')] = "request",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that the model scores together.")] = 256,
    refuse_unknown: Annotated[
        bool, typer.Option("--refuse-unknown", help="Make no list for a history with an item that is unknown.")
    ] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a part, which has a file of its own.")] = 20_000,
    actors: Annotated[int, typer.Option(min=0, help="Actors of Ray (extra ray); 0: score in this process.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each actor, as 1 or 0.25.")] = 0.0,
) -> None:
    """Make lists for millions of rows of history and request: Parquet in, Parquet out.

    Run it again after a stop: parts that are written are not scored again.
    """
    from cramer_peft.recsys.data.table import counted
    from cramer_peft.recsys.scoring.dataset import score_dataset
    from cramer_peft.recsys.scoring.scorer import ListOptions

    given.no_file_bars()
    console = Console()
    options = ListOptions(k, strength, batch_size, user, history, request or None, refuse_unknown=refuse_unknown)
    done = score_dataset(adapter, rows, output, options, part_rows, actors, gpus, given.step_printer(console))
    line = f"{counted(done.rows, 'row')} in {done.seconds:.0f} seconds. Lists: {output}/lists"
    if done.bad:
        line += f"; {counted(done.bad, 'row')} without a list, and why: {output}/bad"
    if done.unknown:
        line += f"; {counted(done.unknown, 'unknown item')} left out of histories (--refuse-unknown names them)"
    given.plain_printer(console)(line)
