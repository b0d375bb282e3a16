"""The command ``cramer-peft demo``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cramer_peft.errors import require
from cramer_peft.recsys.commands import options as given


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
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each generator's training.")] = None,
    epochs: given.Epochs = None,
) -> None:
    """Train, mask, compare and show it all on real data; about ten minutes on two cores."""
    from cramer_peft.recsys.commands.demo_run import DemoOptions, run_demo
    from cramer_peft.recsys.commands.display import everyday_table, examples_table, metrics_table, plot_shares

    given.no_file_bars()
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
    require("matplotlib", extra="demo")  # for the picture at the end
    result = run_demo(options, say=given.step_printer(console))
    plot_shares(result.shares, output / "attribute_shares.png")
    console.print(metrics_table(result.rows))
    console.print(examples_table([(example.request, example.titles) for example in result.examples]))
    everyday = [(example.request, example.heard, example.titles) for example in result.everyday]
    console.print(everyday_table(everyday))
    verdict = "equal those before injection, bit for bit" if result.restored else "DIFFER from those before injection"
    console.print(f"After unloading, the scores of all test users {verdict}.", highlight=False)
    given.plain_printer(console)(
        f"Written to {output}: adapter, backbone, catalogue.json, results.json, attribute_shares.png"
    )
    if not result.restored:
        raise typer.Exit(1)
