"""The command ``cramer-peft evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console

from cramer_peft.errors import DataError
from cramer_peft.recsys.commands import options as given


@given.takes_tables
def evaluate(
    adapter: given.Adapter,
    data: given.Data = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the figures. By default evaluation.json in the folder.")
    ] = None,
    stage: Annotated[str, typer.Option(help="test, or validation to choose by.")] = "test",
    protocol: Annotated[str | None, typer.Option(help="leave-one-out or temporal. By default as in training.")] = None,
    config: given.Config = None,
    seed: Annotated[int, typer.Option(help="Seed of the requests.")] = 0,
    users: Annotated[int | None, typer.Option(min=1, help="Evaluate at most so many users, drawn at random.")] = None,
) -> None:
    """Compare a trained recommender with its frozen backbone on test users.

    Of the file for --config, only the section "columns" counts; by default the columns are those of training.
    """
    from cramer_peft.recsys.commands.config_file import read_settings
    from cramer_peft.recsys.commands.display import tracks_table
    from cramer_peft.recsys.data.own_data import Protocol
    from cramer_peft.recsys.data.splits import Stage
    from cramer_peft.recsys.data.tables import data_name
    from cramer_peft.recsys.folder import EVALUATION_FILE
    from cramer_peft.recsys.recommender import evaluate_recommender, tracks_as_dict
    from cramer_peft.recsys.training.trial import check_output
    from cramer_peft.recsys.versions import versions
    from cramer_peft.storage import write_json

    given.no_file_bars()
    console = Console()
    if stage not in ("test", "validation"):
        raise DataError(f"stage: found {stage!r}, expected 'test' or 'validation'.")
    chosen, columns = cast(Stage, stage), None if config is None else read_settings(config).columns
    target = output or adapter / EVALUATION_FILE
    check_output(target.parent, files=[target.name])  # fail before the evaluation
    say = given.step_printer(console)
    source = cast(Any, data)
    tracks = evaluate_recommender(adapter, source, chosen, cast(Protocol, protocol), columns, seed, users, say)
    console.print(tracks_table(tracks, chosen))
    settings = {"data": data_name(source), "stage": stage, "seed": seed, "users": users}
    write_json(target, {"options": settings, "versions": versions(), "tracks": tracks_as_dict(tracks)})
    given.plain_printer(console)(f"Written to {target}")
