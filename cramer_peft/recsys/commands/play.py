"""The command ``cramer-peft play``."""

from __future__ import annotations

import functools
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cramer_peft.errors import ConfigError, require
from cramer_peft.recsys.commands import options as given

if TYPE_CHECKING:
    from cramer_peft.recsys.play.people import Person
    from cramer_peft.recsys.recommender import RequestRecommender

_HOST = "127.0.0.1"  # this machine alone


@functools.partial(given.takes_tables, needed=False)
def play(
    folder: Annotated[Path, typer.Argument(help="Folder that train or demo wrote, or the adapter folder in it.")],
    data: Annotated[str | None, typer.Option(help="Data set whose users can be picked, by name or folder.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Open a page to try requests on, in a browser on this machine."""
    require("starlette", extra="play")
    uvicorn = require("uvicorn", extra="play")
    from cramer_peft.recsys.commands.everyday import everyday_requests
    from cramer_peft.recsys.play.app import make_app
    from cramer_peft.recsys.recommender import RequestRecommender

    given.no_file_bars()
    try:
        listener = socket.create_server((_HOST, port))  # first, because loading takes a while
    except OSError as error:
        reason = f"port: {port} cannot be used on {_HOST} ({error.strerror})."
        raise ConfigError(f"{reason} Give another one by --port, or 0 for a free one.") from error
    with listener:
        recommender = RequestRecommender.load(folder)
        people = [] if data is None else _people(data, recommender)
        examples = everyday_requests(recommender)
        app = make_app(recommender, folder.absolute().name, people, examples)
        address = f"http://{_HOST}:{listener.getsockname()[1]}/"
        given.plain_printer(Console())(f"The page is at {address} (Ctrl-C ends it)")
        if browser:
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        config = uvicorn.Config(app, http="h11", ws="none", log_level="error", access_log=False, limit_concurrency=64)
        uvicorn.Server(config).run(sockets=[listener])


def _people(data: Any, recommender: RequestRecommender) -> list[Person]:
    """Return users of a data set, read as in the training."""
    from cramer_peft.recsys.folder import read_training, trained_columns
    from cramer_peft.recsys.play.people import people_of

    root = recommender.folder
    assert root is not None  # it was loaded
    return people_of(data, recommender.catalogue, trained_columns(None, read_training(root), root))
