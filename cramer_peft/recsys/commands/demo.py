"""The command ``cramer-peft demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cramer_peft.errors import require
from cramer_peft.recsys.commands import options as given

if TYPE_CHECKING:
    from cramer_peft.recsys.commands.demo_run import DemoOptions, DemoResult


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
    attribute_separator: Annotated[str | None, typer.Option(help="Separator of an item's attributes.")] = None,
    backbone: Annotated[
        Path | None, typer.Option(help="Folder of a SASRec written by an earlier run, to skip its training.")
    ] = None,
    seed: given.Seed = 0,
    encoder: given.Encoder = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each generator's training. By default 60, in full 1,500.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most epochs of the backbone's training. By default 8, in full 30.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Train as long as it helps, and measure the paper's form and text fusion, too: ten minutes."
        ),
    ] = False,
) -> None:
    """Train a recommender on real films, freeze it, and ask it in words; one to two minutes on two idle cores."""
    from cramer_peft.recsys.commands.demo_run import DemoOptions, run_demo

    given.no_file_bars()
    console = Console()
    options = DemoOptions(output, data, title_column, attribute_column, attribute_separator, backbone, seed, encoder)
    options = options.in_full() if full else options
    if steps is not None:
        options = replace(
            options,
            generator=replace(options.generator, steps=steps),
            paper_generator=replace(options.paper_generator, steps=steps),
        )
    if epochs is not None:
        options = replace(options, backbone_options=replace(options.backbone_options, epochs=epochs))
    require("matplotlib", extra="demo")  # for the picture at the end
    result = run_demo(options, say=given.step_printer(console))
    _show(console, result, options)
    if not result.restored:
        raise typer.Exit(1)


def _show(console: Console, result: DemoResult, options: DemoOptions) -> None:
    """Print what was measured and one user's lists, and draw the pictures."""
    from cramer_peft.recsys.commands import display

    note, output = "", options.output
    if not options.full:
        epochs, steps = options.backbone_options.epochs, options.generator.steps
        note = f"quick demo: {epochs} epochs, {steps} steps; --full trains longer"
    pictures = ["before_after.png"]
    display.plot_followed(result.followed, result.shown_users, note, output / pictures[0])
    console.print(display.metrics_table(result.rows, result.users, note))
    if options.full:
        pictures.append("attribute_shares.png")
        display.plot_shares(result.shares, output / pictures[1])
        console.print(display.examples_table([(example.request, example.titles) for example in result.examples]))
    everyday = [(example.request, example.heard, example.titles) for example in result.everyday]
    console.print(display.everyday_table(everyday))
    verdict = "equal those before, bit for bit" if result.restored else "DIFFER from those before"
    say = given.plain_printer(console)
    say(f"After the masks are taken off, the scores of all {result.all_users:,} test users {verdict}.")
    say(f"Written to {output}: adapter, backbone, catalogue.json, results.json, {', '.join(pictures)}")
    say(
        f'Ask it yourself: cramer-peft recommend --adapter {output} --history "A TITLE; ANOTHER" --request "YOUR WORDS"'
    )
