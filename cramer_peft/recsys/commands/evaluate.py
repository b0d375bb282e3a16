"""The command ``cramer-peft evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.errors import DataError
from cramer_peft.recsys.commands import options as given


def evaluate(
    adapter: Annotated[Path, typer.Option(help="Folder that train or demo wrote, or the adapter folder in it.")],
    data: given.Data,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the figures. By default evaluation.json in the folder.")
    ] = None,
    stage: Annotated[str, typer.Option(help="test, or validation to choose by.")] = "test",
    protocol: Annotated[str | None, typer.Option(help="leave-one-out or temporal. By default as in training.")] = None,
    title_column: given.TitleColumn = None,
    attribute_column: given.AttributeColumn = None,
    attribute_separator: given.AttributeSeparator = None,
    min_attribute_items: Annotated[
        int | None, typer.Option(min=1, help="Attributes on fewer items are dropped. By default as in training.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the requests.")] = 0,
    users: given.Users = None,
) -> None:
    """Compare a trained recommender with its frozen backbone on test users."""
    from cramer_peft.recsys.commands.tables import tracks_table
    from cramer_peft.recsys.data.own_data import Columns
    from cramer_peft.recsys.training.recommender_training import evaluate_recommender, tracks_as_dict
    from cramer_peft.recsys.versions import versions
    from cramer_peft.storage import write_json

    given.no_file_bars()
    console = Console()
    if stage not in ("test", "validation"):
        raise DataError(f"stage: found {stage!r}, expected 'test' or 'validation'.")
    named = (title_column, attribute_column, attribute_separator)
    own_columns = any(value is not None for value in (*named, min_attribute_items))
    tracks = evaluate_recommender(
        adapter,
        data,
        stage,  # type: ignore[arg-type]
        None if protocol is None else given.protocol_of(protocol),
        Columns(*named, min_attribute_items or 5) if own_columns else None,
        seed,
        users,
        say=lambda line: console.print(f"[bold]•[/bold] {escape(line)}", highlight=False),
    )
    console.print(tracks_table(tracks, stage))  # type: ignore[arg-type]
    target = output or adapter / "evaluation.json"
    settings = {"data": Path(data).name, "stage": stage, "seed": seed, "users": users}
    write_json(target, {"options": settings, "versions": versions(), "tracks": tracks_as_dict(tracks)})
    console.print(f"Written to {target}", highlight=False, markup=False)
