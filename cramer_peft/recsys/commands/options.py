"""Options and output that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.reading import printable

if TYPE_CHECKING:
    from cramer_peft.recsys.data.tables import Tables

Adapter = Annotated[Path, typer.Option(help="Folder that train or demo wrote, or the adapter folder in it.")]
Data = Annotated[
    str | None, typer.Option(help="movielens-100k, movielens-1m, or a folder of RecBole atomic files (.inter, .item).")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Request encoder, for example all-minilm-l6-v2 (extra minilm). By default one that knows the catalogue."
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Most epochs of the backbone's training. By default 30, for bert4rec 60.")
]
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
        help='JSON file with further settings, in the sections "columns", "masks", "training" and "generator".'
    ),
]

TABLES = "Your tables"  # the panel of --help
_NAMED = "By default it is found by its name."
_TABLE_OPTIONS = {
    "interactions": (Path, "CSV, TSV (also .gz) or Parquet file with a row for each visit, in place of --data."),
    "items": (Path, "The same with a row for each item; without it, titles and attributes are those of the visits."),
    "user": (str, f"Column of the visits with the user. {_NAMED}"),
    "item": (str, f"Column of both tables with the item. {_NAMED}"),
    "time": (str, f"Column of the visits with the time, numbers or dates. {_NAMED}"),
    "rating": (str, f"Column of the visits that --min-rating looks at. {_NAMED}"),
    "request_column": (str, 'Column of the visits with what the user asked for. By default "request", if it is there.'),
    "title": (str, f"Column of the items with the title. {_NAMED}"),
    "attributes": (str, f"Column of the items with the attributes, such as categories. {_NAMED}"),
    "sep": (str, "Separator of the columns in CSV files. By default it is found in the first line."),
    "encoding": (str, "Encoding of CSV files, such as cp1252. By default UTF-8."),
}


def takes_tables(command: Callable[..., None], needed: bool = True) -> Callable[..., None]:
    """Give a command the options for tables: its ``data`` is the name, or the tables, that they say.

    ``needed`` is False for a command that also works without data: its ``data`` is None then.
    """

    @functools.wraps(command)
    def run(**given: Any) -> None:
        named = {name: given.pop(name) for name in _TABLE_OPTIONS}
        absent = not needed and given["data"] is None and not any(named.values())
        command(**{**given, "data": None if absent else _chosen(given["data"], named)})

    own = list(inspect.signature(command, eval_str=True).parameters.values())
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=text, rich_help_panel=TABLES)],
        )
        for name, (kind, text) in _TABLE_OPTIONS.items()
    ]
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    run.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
    return run


def _chosen(data: str | None, named: dict[str, Any]) -> str | Tables:
    from cramer_peft.recsys.data.tables import Tables

    given = [f"--{name.replace('_', '-')}" for name, value in named.items() if value is not None]
    if data is not None and not given:
        return data
    if data is not None or named["interactions"] is None:
        found = " and ".join(given if data is None else ["--data", *given]) or "neither"
        raise ConfigError(
            f"found {found}, expected --data (a name or a folder) or --interactions (a file, with --items and the "
            "names of the columns)."
        )
    named["request"] = named.pop("request_column")
    return Tables(**named)


def data_options(data: str | Tables) -> str:
    """Return the options that name a data set, for a command to show; the columns are kept with the recommender."""
    if isinstance(data, str):
        return f"--data {data}"
    return f"--interactions {data.interactions}" + (f" --items {data.items}" if data.items else "")


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
