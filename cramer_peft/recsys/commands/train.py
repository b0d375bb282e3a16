"""The command ``cramer-peft train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.commands import options as given


def train(
    data: given.Data,
    output: Annotated[Path, typer.Option(help="Folder that the recommender is written to.")],
    backbone: Annotated[
        str | None, typer.Option(help="sasrec, bert4rec, gru4rec or replay-sasrec (extra replay). By default sasrec.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a backbone that an earlier run wrote, to skip its training.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="leave-one-out, or temporal: one timeline for all users.")
    ] = "leave-one-out",
    title_column: given.TitleColumn = None,
    attribute_column: given.AttributeColumn = None,
    attribute_separator: given.AttributeSeparator = None,
    min_attribute_items: Annotated[int, typer.Option(min=1, help="Attributes on fewer items are dropped.")] = 5,
    encoder: Annotated[
        str | None, typer.Option(help="Request encoder, for example all-minilm-l6-v2 (extra minilm).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help='JSON file with fields of RequestMaskConfig: {"gate": "scale"}.')
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of the backbone's training.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the generator's training.")] = None,
    positions: Annotated[
        int | None, typer.Option(min=1, help="Positions of each history that the generator's losses look at.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Histories in a step of either training, of all processes together.")
    ] = None,
    negatives: Annotated[
        int | None,
        typer.Option(min=1, help="Items sampled for a step of either training. By default by the catalogue's size."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    users: given.Users = None,
    checkpoint_folder: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints of this training, to go on from if it is killed.")
    ] = None,
    checkpoint_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the generator from one checkpoint to the next; a backbone's: an epoch.")
    ] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, or start where there is none.")
    ] = False,
) -> None:
    """Train a backbone and request masks on your own data, and validate them."""
    from dataclasses import replace

    from cramer_peft.recsys.backbones import BACKBONES
    from cramer_peft.recsys.commands.tables import tracks_table
    from cramer_peft.recsys.data.own_data import Columns
    from cramer_peft.recsys.training.recommender_training import (
        TrainOptions,
        generator_options,
        read_mask_settings,
        train_recommender,
    )
    from cramer_peft.training import Checkpoints
    from cramer_peft.training.processes import Processes

    if resume and checkpoint_folder is None:
        raise ConfigError("--resume goes on from checkpoints: give their folder too, by --checkpoint-folder.")
    given.no_file_bars()
    console = Console(quiet=not Processes.launched().writes)
    settings: dict[str, Any] = {} if config is None else read_mask_settings(config)
    if encoder is not None:
        settings["encoder"] = encoder
    changes: dict[str, Any] = {
        name: value for name, value in (("steps", steps), ("positions", positions)) if value is not None
    }
    kind = BACKBONES.get(backbone or "sasrec")
    options = TrainOptions(
        data=data,
        output=output,
        backbone=backbone,
        checkpoint=checkpoint,
        protocol=given.protocol_of(protocol),
        columns=Columns(title_column, attribute_column, attribute_separator, min_attribute_items),
        config=settings,
        epochs=epochs,
        batch_size=batch_size,
        negatives=negatives,
        generator=replace(generator_options(kind), **changes) if changes else None,
        seed=seed,
        users=users,
        checkpoints=None if checkpoint_folder is None else Checkpoints(checkpoint_folder, checkpoint_steps, resume),
    )
    trained = train_recommender(
        options, say=lambda line: console.print(f"[bold]•[/bold] {escape(line)}", highlight=False)
    )
    if not trained.tracks:
        return  # not the first process, which says the rest
    console.print(tracks_table(trained.tracks, "validation"))
    _show_example(console, trained)
    console.print(
        f"Written to {output}. Next: cramer-peft recommend --adapter {output} --history TITLES --request TEXT; "
        f"at the end, cramer-peft evaluate --adapter {output} --data {data}",
        highlight=False,
        markup=False,
    )


def _show_example(console: Console, trained: Any) -> None:
    """One user's list when they ask for what their history has least of."""
    from cramer_peft.recsys.commands.report import answer_table, changes
    from cramer_peft.recsys.requests.attributes import phrase

    catalogue = trained.data.catalogue
    histories = trained.data.split.history("validation")
    history = histories[len(histories) // 2]
    least = int(catalogue.item_attributes[history].sum(0).argmin())
    request = f"Something with {phrase(catalogue.attributes[least])}, please"
    answer = trained.recommender.recommend(history.tolist(), request)
    titles = "; ".join(catalogue.titles[item] for item in history[-5:].tolist())
    console.print(f"One user, who last met: {titles}", highlight=False, markup=False)
    console.print(answer_table(answer, catalogue, request))
    for line in changes(answer, catalogue):
        console.print(f"  {line}", highlight=False, markup=False)
