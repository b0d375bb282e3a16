"""Options and output that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.recsys.reading import printable

Adapter = Annotated[Path, typer.Option(help="Folder that train or demo wrote, or the adapter folder in it.")]
Data = Annotated[
    str, typer.Option(help="movielens-100k, movielens-1m, or a folder of RecBole atomic files (.inter, .item).")
]
Encoder = Annotated[str | None, typer.Option(help="Request encoder, for example all-minilm-l6-v2 (extra minilm).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Most epochs of the backbone's training.")]
MinRating = Annotated[
    float | None, typer.Option(help="Leave out interactions with a lower rating. By default every one counts.")
]
Requests = Annotated[
    str | None,
    typer.Option(
        help="Where requests come from, with weights, as stated=2,attributes=1; also catalogue and history. By "
        "default those that the data states and sentences about attributes."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is random.")]
ReportTo = Annotated[
    str, typer.Option(help="Where trainings report: tensorboard, wandb, mlflow …; several as tensorboard,wandb.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint; without one, start anew.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help='JSON file with further settings, in sections such as "columns" and "masks": see the docs, Train.'
    ),
]


def step_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line for each step."""
    return lambda line: console.print(f"[bold]•[/bold] {escape(printable(line))}", highlight=False)


def plain_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a line as it is."""
    return lambda line: console.print(printable(line), highlight=False, markup=False)


def no_file_bars() -> None:
    """Turn off transformers' progress bars for files; those of training stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
