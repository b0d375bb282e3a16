"""The command ``cramer-peft``."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

from cramer_peft.errors import CramerError, DataError, MissingExtraError

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the command cramer-peft needs {error.name!r}. It comes with an extra: pip install 'cramer-peft[demo]'."
    ) from error

from cramer_peft.recsys.commands.evaluate import evaluate
from cramer_peft.recsys.commands.train import train

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_show_locals=False)
app.command()(train)
app.command()(evaluate)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder that the results are written to.")] = Path("cramer-demo"),
    data: Annotated[
        str | None,
        typer.Option(
            help="movielens-100k, movielens-1m, or a folder of RecBole atomic files (.inter, .item). Without it, "
            "MovieLens-100k is fetched."
        ),
    ] = None,
    title_column: Annotated[str | None, typer.Option(help="Column of the .item file that holds titles.")] = None,
    attribute_column: Annotated[
        str | None, typer.Option(help="Column of the .item file that holds attributes, such as genres.")
    ] = None,
    attribute_separator: Annotated[str | None, typer.Option(help="What separates an item's attributes.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of a SASRec written by an earlier run, to skip its training.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    encoder: Annotated[
        str | None, typer.Option(help="Request encoder, for example all-minilm-l6-v2 (extra minilm).")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each generator's training.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs of the backbone's training.")] = None,
) -> None:
    """Train, mask, compare and show it all on real data; about ten minutes on two cores."""
    from dataclasses import replace

    from cramer_peft.recsys.commands.report import examples_table, metrics_table, plot_shares
    from cramer_peft.recsys.demo import DemoOptions, run_demo

    _no_file_bars()
    console = Console()
    options = DemoOptions(output, data, title_column, attribute_column, attribute_separator, backbone, seed, encoder)
    if steps is not None:
        options = replace(
            options,
            generator=replace(options.generator, steps=steps),
            paper_generator=replace(options.paper_generator, steps=steps),
        )
    if epochs is not None:
        options = replace(options, backbone_options=replace(options.backbone_options, epochs=epochs))
    result = run_demo(options, say=lambda line: console.print(f"[bold]•[/bold] {escape(line)}", highlight=False))
    plot_shares(result, output / "attribute_shares.png")
    console.print(metrics_table(result.rows), examples_table(result.examples))
    verdict = "equal those before injection, bit for bit" if result.restored else "DIFFER from those before injection"
    console.print(f"After unloading, the scores of all test users {verdict}.", highlight=False)
    written = "adapter, backbone, catalogue.json, results.json, attribute_shares.png"
    console.print(f"Written to {output}: {written}", highlight=False, markup=False)
    if not result.restored:
        raise typer.Exit(1)


@app.command()
def recommend(
    adapter: Annotated[Path, typer.Option(help="Folder that the demo wrote, or the adapter folder in it.")],
    history: Annotated[str, typer.Option(help='Titles, oldest first: "Alien; Blade Runner".')],
    request: Annotated[str | None, typer.Option(help='What is asked: "something funny, no horror".')] = None,
    strength: Annotated[float, typer.Option(help="Strength of the request; 0 is the frozen model.")] = 1.0,
    k: Annotated[int, typer.Option(min=1, help="Number of titles.")] = 10,
) -> None:
    """Recommend titles under a request, and say what the request changed."""
    from cramer_peft.recsys.commands.report import answer_table, changes
    from cramer_peft.recsys.recommender import RequestRecommender

    _no_file_bars()
    console = Console()
    recommender = RequestRecommender.load(adapter)
    titles = [title.strip() for title in history.split(";") if title.strip()]
    if not titles:
        raise DataError('the history is empty. Give at least one title: --history "Alien; Blade Runner".')
    items = [recommender.catalogue.find_title(title) for title in titles]
    answer = recommender.recommend(items, request, strength=strength, k=k)
    console.print(answer_table(answer, recommender.catalogue, request))
    for line in changes(answer, recommender.catalogue):
        console.print(f"  {line}", highlight=False, markup=False)


def _no_file_bars() -> None:
    """Turn off transformers' bars for files that take milliseconds; those of training stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def main() -> None:
    """Run the command; an error of ours is a message and exit code 1, not a traceback."""
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        app()
    except (CramerError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
