"""Runs a function as a command of the benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.errors import CramerError


def make_app(function: Callable[..., None]) -> typer.Typer:
    """Return a command-line application with ``function`` as its one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    app.command()(function)
    return app


def run_command(function: Callable[..., None]) -> None:
    """Run ``function`` as a command; an error of ours is a message and exit code 1, not a traceback."""
    try:
        make_app(function)()
    except (CramerError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
