"""The command ``cramer-peft recommend``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from cramer_peft.recsys.commands import options as given


def recommend(
    adapter: given.Adapter,
    history: Annotated[str, typer.Option(help='Titles, oldest first: "Alien; Blade Runner"; or item_id=ID.')],
    request: Annotated[str | None, typer.Option(help='The request: "something funny, no horror".')] = None,
    before: Annotated[
        list[str] | None,
        typer.Option(help="An earlier request of the same conversation; repeat the option, the oldest first."),
    ] = None,
    strength: Annotated[float, typer.Option(help="Strength of the request; 0 is the frozen model.")] = 1.0,
    k: Annotated[int, typer.Option(min=1, help="Number of titles.")] = 10,
) -> None:
    """Recommend titles under a request, and show what was heard and what the request changed."""
    from cramer_peft.recsys.commands.display import show_answer
    from cramer_peft.recsys.data.history_text import read_history
    from cramer_peft.recsys.recommender import RequestRecommender

    given.no_file_bars()
    recommender = RequestRecommender.load(adapter)
    items = read_history(history, recommender.catalogue)
    answer = recommender.recommend(items, request, strength=strength, k=k, before=before or ())
    show_answer(Console(), answer, recommender.catalogue, request)
