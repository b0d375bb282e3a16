"""The command ``cramer-peft``."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Annotated

from cramer_peft import __version__
from cramer_peft.errors import CramerError, MissingExtraError

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the command cramer-peft needs {error.name!r}. It comes with an extra: pip install 'cramer-peft[demo]'."
    ) from error

from cramer_peft.recsys.commands.demo import demo
from cramer_peft.recsys.commands.evaluate import evaluate
from cramer_peft.recsys.commands.play import play
from cramer_peft.recsys.commands.recommend import recommend
from cramer_peft.recsys.commands.score import score
from cramer_peft.recsys.commands.train import train

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
for command in (train, evaluate, demo, recommend, play, score):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cramer-peft {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train a recommender, freeze it, and say what you want to it in words."""


def main() -> None:
    """Run the command; an error of this library is a message and exit code 1, not a traceback."""
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        app()
    except (CramerError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
