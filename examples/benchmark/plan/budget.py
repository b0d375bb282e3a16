"""The jobs of a plan, and those of them that fit a budget of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmark.cells import Cell
from cramer_peft.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """A cell to run, or a backbone to train.

    Attributes:
        cell: The cell; for a backbone, any of the cells that share it.
        backbone: Whether only the backbone is trained.
        seconds: Estimate.
        stored: Whether its result is stored already.
    """

    cell: Cell
    backbone: bool
    seconds: float
    stored: bool = False

    @property
    def label(self) -> str:
        """The name in tables."""
        if self.backbone:
            return f"backbone {self.cell.backbone}"
        return self.cell.method if self.cell.variant is None else f"{self.cell.method}: {self.cell.variant}"

    @property
    def kind(self) -> str:
        """The group of jobs of similar cost."""
        return "backbone" if self.backbone else self.cell.kind


def within(jobs: Sequence[Job], minutes: float, workers: int) -> tuple[list[Job], list[Job]]:
    """Return the jobs that fit a budget, and those that do not, both in their order.

    A backbone counts with the first cell that needs it.

    Args:
        jobs: Backbones and cells, each backbone before its cells.
        minutes: Minutes by the clock.
        workers: Processes that share the work.

    Raises:
        ConfigError: If not even the first cell to run fits.
    """
    left = minutes * 60 * workers
    kept: list[Job] = []
    cut: list[Job] = []
    untrained: dict[str, Job] = {}
    for job in jobs:
        if job.stored:
            kept.append(job)
        elif job.backbone:
            untrained[job.cell.backbone_name] = job
        else:
            needed = [untrained[job.cell.backbone_name]] if job.cell.backbone_name in untrained else []
            cost = job.seconds + sum(other.seconds for other in needed)
            if cost > left:
                cut.append(job)
                continue
            left -= cost
            untrained.pop(job.cell.backbone_name, None)
            kept += [*needed, job]
    if cut and all(job.stored for job in kept):
        first = cut[0]
        backbone = untrained.get(first.cell.backbone_name)
        seconds = first.seconds + (backbone.seconds if backbone else 0.0)
        raise ConfigError(
            f"nothing fits {minutes:g} minutes: the first cell, {first.cell.name}, needs about {seconds / 60:.1f} on "
            "one core. Raise budget_minutes, or lower steps, epochs or max_users."
        )
    return kept, cut
