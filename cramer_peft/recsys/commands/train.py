"""The command ``cramer-peft train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.commands import options as given

if TYPE_CHECKING:
    from cramer_peft.recsys.training.recommender_training import Trained


@given.takes_tables
def train(
    output: Annotated[Path, typer.Option(help="Folder that the recommender is written to.")],
    data: given.Data = None,
    backbone: Annotated[
        str | None, typer.Option(help="sasrec, bert4rec, gru4rec or replay-sasrec (extra replay). By default sasrec.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of a backbone that an earlier run wrote, to skip its training.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="leave-one-out, or temporal: one timeline for all users.")
    ] = "leave-one-out",
    min_rating: given.MinRating = None,
    config: given.Config = None,
    epochs: given.Epochs = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of the generator. By default 1,500.")] = None,
    requests: given.Requests = None,
    seed: given.Seed = 0,
    checkpoint_folder: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints of this training, to resume it after a kill.")
    ] = None,
    report_to: given.ReportTo = "none",
    resume: given.Resume = False,
) -> None:
    """Train a backbone and request masks on your own data, and validate them."""
    from cramer_peft.recsys.commands.config_file import Settings, read_settings
    from cramer_peft.recsys.data.own_data import Columns, Protocol
    from cramer_peft.recsys.requests.sources import read_weights
    from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
    from cramer_peft.training import Checkpoints, Processes

    if resume and checkpoint_folder is None:
        raise ConfigError("--resume goes on from checkpoints: give their folder too, by --checkpoint-folder.")
    given.no_file_bars()
    console = Console(quiet=not Processes.launched().writes)
    settings = Settings() if config is None else read_settings(config)
    every, columns = settings.training.checkpoint_steps, settings.columns or Columns()
    columns = columns if min_rating is None else replace(columns, min_rating=min_rating)
    options = TrainOptions(
        data=cast(Any, data),
        output=output,
        backbone=backbone,
        checkpoint=checkpoint,
        protocol=cast(Protocol, protocol),
        columns=columns,
        config=settings.masks,
        epochs=epochs,
        batch_size=settings.training.batch_size,
        negatives=settings.training.negatives,
        generator=settings.generator_options(backbone, steps),
        requests=None if requests is None else read_weights(requests),
        seed=seed,
        users=settings.training.users,
        checkpoints=None if checkpoint_folder is None else Checkpoints(checkpoint_folder, every, resume),
        report_to=report_to.replace(" ", "").split(","),
    )
    trained = train_recommender(options, say=given.step_printer(console))
    if trained.tracks:  # of the first process
        _show(console, trained, data, output)


def _show(console: Console, trained: Trained, data: Any, output: Path) -> None:
    """Print the validation, and one user's list under a stated request, or the attribute that they met least."""
    from cramer_peft.recsys.commands.display import show_answer, tracks_table
    from cramer_peft.recsys.requests.attribute_requests import phrase

    console.print(tracks_table(trained.tracks, "validation"))
    catalogue, histories = trained.data.catalogue, trained.data.split.history("validation")
    history = histories[len(histories) // 2]
    request = next((text for text in trained.data.own_requests("validation") or () if text), None)
    if request is None and catalogue.attributes:
        least = int(catalogue.item_attributes[history].sum(0).argmin())
        request = f"Something with {phrase(catalogue.attributes[least])}, please"
    say = given.plain_printer(console)
    say(f"One user, who last met: {'; '.join(catalogue.titles[item] for item in history[-5:].tolist())}")
    show_answer(console, trained.recommender.recommend(history.tolist(), request), catalogue, request)
    say(
        f"Written to {output}. Next: cramer-peft recommend --adapter {output} --history TITLES --request TEXT; "
        f"at the end, cramer-peft evaluate --adapter {output} {given.data_options(data)}"
    )
