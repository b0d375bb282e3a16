"""Run a function as a command."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.markup import escape

from cramer_peft.errors import CramerError


def make_app(function: Callable[..., None]) -> typer.Typer:
    """Return a command-line application with ``function`` as its only command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    app.command()(function)
    return app


def run_command(function: Callable[..., None]) -> None:
    """Run ``function`` as a command; print an expected error as a message and exit with 1, without a traceback."""
    try:
        make_app(function)()
    except (CramerError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
