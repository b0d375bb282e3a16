"""Pool the seeds of each method: values are averaged per user first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmark.cell_files import CellResult
from benchmark.measures.summary import pooled, summarise, sweep_interval
from benchmark.report.tables import Entry
from cramer_peft.errors import DataError

Place = tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Group:
    """The seeds of one method in one place.

    Attributes:
        place: Data, protocol, backbone.
        method: The method.
        variant: Name of its variant; None: the method as it is.
        seeds: Seeds that are done.
        trainable: Number of parameters trained.
        seconds: Means over the seeds of training and evaluating.
        runs: Seed → "track/metric" → (users,).
        values: "track/metric" → (users,), averaged over the seeds per user.
        tracks: Track → metric → value, low, high, of the averaged values.
        strength: The strength sweep of the averaged values; None: there is none.
        trained_on: Names of the devices; empty if the cells do not name them.
    """

    place: Place
    method: str
    variant: str | None
    seeds: tuple[int, ...]
    trainable: int
    seconds: Mapping[str, float]
    runs: Mapping[int, Mapping[str, Tensor]]
    values: Mapping[str, Tensor]
    tracks: Mapping[str, Mapping[str, Any]]
    strength: Mapping[str, Any] | None
    trained_on: tuple[str, ...] = ()

    def get(self, track: str, metric: str) -> Entry | None:
        """Return one figure; None if it was not measured."""
        found: Entry | None = self.tracks.get(track, {}).get(metric)
        return found

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.method if self.variant is None else self.variant

    def document(self) -> dict[str, Any]:
        """Return the entry in the JSON file."""
        return {
            "data": self.place[0],
            "protocol": self.place[1],
            "backbone": self.place[2],
            "method": self.method,
            "variant": self.variant,
            "seeds": list(self.seeds),
            "trainable": self.trainable,
            "seconds": dict(self.seconds),
            "trained_on": list(self.trained_on),
            "tracks": self.tracks,
            "strength": self.strength,
        }


def group_results(results: Iterable[CellResult]) -> list[Group]:
    """Pool the seeds of the cells that are done and have no study.

    Raises:
        DataError: If seeds of one group have different users.
    """
    runs: dict[tuple[str, str, str, str, str | None], list[CellResult]] = defaultdict(list)
    for result in results:
        if result.status == "done" and "study" not in result.cell:
            cell = result.cell
            key = cell["data"], cell["protocol"], cell["backbone"], cell["method"], cell["variant"]
            runs[key].append(result)
    return [_group(key, found) for key, found in runs.items()]


def _group(key: tuple[str, str, str, str, str | None], results: Sequence[CellResult]) -> Group:
    users = {len(column) for result in results for column in result.values.values()}
    if len(users) > 1:
        raise DataError(f"{', '.join(map(str, key))}: the seeds have {sorted(users)} users, expected the same.")
    values = pooled([result.values for result in results])
    seconds = [result.figures["seconds"] for result in results]
    sweep = any(name.startswith("strength ") for name in values)
    return Group(
        place=key[:3],
        method=key[3],
        variant=key[4],
        seeds=tuple(sorted(int(result.cell["seed"]) for result in results)),
        trainable=int(results[0].figures["trainable"]),
        seconds={name: sum(row[name] for row in seconds) / len(seconds) for name in seconds[0]},
        runs={int(result.cell["seed"]): result.values for result in results},
        values=values,
        tracks=summarise(values),
        strength=sweep_interval(values) if sweep else None,
        trained_on=tuple(
            sorted({str(result.figures["trained_on"]) for result in results if "trained_on" in result.figures})
        ),
    )
