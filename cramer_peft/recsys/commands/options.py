"""Options that commands on a user's own data share."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import typer

from cramer_peft.errors import DataError

Data = Annotated[
    str, typer.Option(help="movielens-100k, movielens-1m, or a folder of RecBole atomic files (.inter, .item).")
]
TitleColumn = Annotated[str | None, typer.Option(help="Column of the .item file that holds titles.")]
AttributeColumn = Annotated[
    str | None, typer.Option(help="Column of the .item file that holds attributes, such as genres.")
]
AttributeSeparator = Annotated[str | None, typer.Option(help="What separates an item's attributes.")]
Users = Annotated[int | None, typer.Option(min=1, help="Evaluate at most so many users, drawn at random.")]


def protocol_of(text: str) -> Literal["leave-one-out", "temporal"]:
    """A protocol by its name.

    Raises:
        DataError: If there is no such protocol.
    """
    if text not in ("leave-one-out", "temporal"):
        raise DataError(f"protocol: found {text!r}, expected 'leave-one-out' or 'temporal'.")
    return cast(Literal["leave-one-out", "temporal"], text)


def no_file_bars() -> None:
    """Turn off transformers' bars for files that take milliseconds; those of training stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
