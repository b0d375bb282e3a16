"""Convert published data to atomic files: ``python -m benchmark.data``, from the folder ``examples``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.console import run_command
from benchmark.data.convert import convert_amazon, convert_kuaisar, convert_redial
from cramer_peft.errors import ConfigError

KINDS = ("kuaisar", "amazon", "redial")


def convert(
    kind: Annotated[str, typer.Argument(help="kuaisar, amazon or redial.")],
    files: Annotated[
        list[Path],
        typer.Argument(help="kuaisar: the folder. amazon: the reviews and the metadata. redial: its files."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write, whose name the files get.")],
    least: Annotated[
        int | None, typer.Option(min=1, help="Fewest interactions of a user and of an item; 5, of redial 1.")
    ] = None,
) -> None:
    """Write atomic files of data as its authors publish it."""
    wanted = {"kuaisar": 1, "amazon": 2}.get(kind, len(files))
    if kind not in KINDS or len(files) != wanted:
        raise ConfigError(
            f"found {kind!r} with {len(files)} files, expected kuaisar FOLDER, amazon REVIEWS METADATA or redial FILE …"
        )
    if kind == "kuaisar":
        convert_kuaisar(files[0], output, least or 5)
    elif kind == "amazon":
        convert_amazon(files[0], files[1], output, least or 5)
    else:
        convert_redial(files, output, least or 1)
    typer.echo(f"Written to {output}")


if __name__ == "__main__":
    run_command(convert)
