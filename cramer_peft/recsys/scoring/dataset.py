"""Scores files of rows part by part, in this process or by Ray Data's actors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cramer_peft.errors import ConfigError, require
from cramer_peft.recsys.data.table import counted
from cramer_peft.recsys.reading import as_path
from cramer_peft.recsys.scoring.parts import Output, Part, address, open_rows, parts_to_do, plan_parts, read_part
from cramer_peft.recsys.scoring.scorer import ListOptions, ListScorer

_SECONDS = 5.0  # between two lines of progress, at least


@dataclass(frozen=True)
class ScoreSummary:
    """What a scoring did; the time includes the start of Ray and the loading of recommenders."""

    parts: int  # scored now
    earlier: int  # parts that were there already
    rows: int  # of the parts that were scored now
    bad: int  # of these rows, those without a list
    seconds: float
    unknown: int = 0  # items left out of the histories of the other rows


class PartScorer:
    """Scores parts and writes them; Ray makes one in each actor. Arguments as for ``score_dataset``."""

    def __init__(
        self, recommender: str, rows: str, output: str, options: ListOptions, gpu: bool, threads: int | None = None
    ) -> None:
        self._scorer = ListScorer(recommender, options, gpu, threads)
        self._files, self._output = open_rows(rows).filesystem, Output(output)

    def score(self, part: Part) -> dict[str, int]:
        """Score a part, write it, and return its numbers of rows."""
        scored = self._scorer(read_part(self._files, part, self._scorer.options))
        self._output.write_part(part, scored)
        return {"rows": part.rows, "bad": len(scored.bad), "unknown": scored.unknown}

    def __call__(self, batch: Any) -> Any:
        """Score the parts in a table of Ray Data, and return a table of their numbers."""
        numbers = [self.score(Part(**own)) for own in batch.to_pylist()]
        return require("pyarrow", extra="tables").Table.from_pylist(numbers)


def score_dataset(
    recommender: str | os.PathLike[str],
    rows: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ListOptions | None = None,
    part_rows: int = 20_000,
    actors: int = 0,
    gpus: float = 0.0,
    say: Callable[[str], None] = print,
) -> ScoreSummary:
    """Make a list for each row of Parquet files, and write the lists as Parquet files.

    ``output/lists`` gets a file for each part of the rows, with the columns user, rank (from 1), item, score and heard,
    and ``output/bad`` those of its rows that have no list, with the reason. A file is there whole or not at all. Call
    it again with the same arguments after a stop: parts that are there are not scored again.

    Args:
        recommender: The folder that training wrote. Every machine must be able to read it.
        rows: A Parquet file, or a folder of them; a path, or an address such as ``s3://bucket/folder``.
        output: A folder of its own, likewise.
        options: Length of the lists, names of the columns, rows scored together.
        part_rows: Rows of a part. A part is scored by one actor and held in its memory.
        actors: Actors of Ray Data, with a core each; 0: score in this process, without Ray.
        gpus: GPUs of each actor, as 1 or 0.25; in this process, anything but 0 means the accelerator.
        say: Called with a line of progress now and then.

    Raises:
        ConfigError: If a number is impossible.
        DataError: If the rows or the recommender cannot be read, or the output belongs to another scoring.
        MissingExtraError: If pyarrow, or Ray for actors, is not installed.
    """
    start, options = time.monotonic(), options or ListOptions()
    if actors < 0 or gpus < 0:
        raise ConfigError(f"found actors={actors} and gpus={gpus}, expected 0 or more.")
    folder, source, target = as_path(recommender).absolute(), address(rows), address(output)
    parts, place = plan_parts(source, options, part_rows), Output(target)
    here = PartScorer(str(folder), source, target, options, gpus > 0 and not actors)  # any error now, not in an actor
    todo = parts_to_do(place, parts, folder, options)
    rows_there, there = counted(sum(part.rows for part in parts), "row"), len(parts) - len(todo)
    say(f"{rows_there} in {counted(len(parts), 'part')}, {there} there already")
    arguments = (str(folder), source, target, options, gpus > 0, 1)
    done = _by_actors(todo, arguments, actors, gpus) if actors and todo else map(here.score, todo)
    count, bad, unknown, told = 0, 0, 0, start
    for number, own in enumerate(done, start=1):
        count, bad, now = count + own["rows"], bad + own["bad"], time.monotonic()
        unknown += own["unknown"]
        if now - told >= _SECONDS or number == len(todo):
            told = now
            say(
                f"part {number} of {len(todo)}: {count:,} rows, {bad:,} bad, {count / (now - start):,.0f} rows a second"
            )
    place.clear()
    return ScoreSummary(len(todo), len(parts) - len(todo), count, bad, time.monotonic() - start, unknown)


def _by_actors(parts: list[Part], arguments: tuple[Any, ...], actors: int, gpus: float) -> Iterator[dict[str, int]]:
    """Score parts by actors; Ray starts another actor for one that dies, and gives it the part again."""
    ray, data = require("ray", extra="ray"), require("ray.data", extra="ray")
    own = not ray.is_initialized()
    if own:
        ray.init(logging_level="warning")
    try:
        # a block for each part, or one actor would get several at once
        dataset = data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts)).map_batches(
            PartScorer,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(actors, len(parts))),
            num_cpus=1,
            num_gpus=gpus or None,
        )
        dataset.context.enable_progress_bars = False
        yield from dataset.iter_rows()
    finally:
        if own:
            ray.shutdown()
