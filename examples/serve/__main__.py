"""Runs the server: ``python -m serve FOLDER``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from cramer_peft.recsys.recommender import RequestRecommender

from .app import make_app
from .server import make_server
from .settings import Settings


def main() -> None:
    """Load the recommender once and serve it until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    parser.add_argument("folder", type=Path, help="What `cramer-peft demo` wrote.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on.")
    for each in fields(Settings):
        kind = type(each.default)
        option = f"--{each.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=each.default, help=f"{each.metadata['help']} (%(default)s)")
    given = vars(parser.parse_args())
    settings = Settings(**{each.name: given[each.name] for each in fields(Settings)})
    app = make_app(RequestRecommender.load(given["folder"]), settings)
    make_server(app, settings, given["host"], given["port"]).run()


if __name__ == "__main__":
    main()
