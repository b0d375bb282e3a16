"""Estimate the seconds that a job takes, from a table of costs and from the jobs that have finished."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmark.cells import Cell
from benchmark.data import DataSize, LoadedData
from benchmark.methods import method_named, not_on
from cramer_peft.recsys.training.backbone_training import backbone_options


@dataclass(frozen=True)
class Costs:
    """Seconds on one core, measured on MovieLens-100k with SASRec.

    A field ``…_item`` is the part that grows with the number of items.

    Attributes:
        start: Of every cell: loading, and fitting of methods that are not trained.
        step: Of a training step of ours.
        step_item: The same for each item of the catalogue.
        answer: Of a user's answer to one track, with its metrics.
        answer_item: The same for each item.
        tracks: Answers for each user: tracks and strengths.
        epoch: Of an epoch of a backbone's training, for each interaction.
        epoch_item: The same for each item.
        epochs: Epochs after which training usually stops.
        tuned_text: Of a text through a sentence encoder that is trained, of MiniLM's size.
    """

    start: float = 2.0
    step: float = 0.05
    step_item: float = 2.5e-5
    answer: float = 2.5e-4
    answer_item: float = 2.5e-7
    tracks: int = 26
    epoch: float = 1.3e-5
    epoch_item: float = 1.5e-8
    epochs: int = 20
    tuned_text: float = 0.05


COSTS = Costs()


@dataclass(frozen=True)
class Factors:
    """Costs of a backbone, as multiples of SASRec's."""

    step: float = 1.0
    answer: float = 1.0
    epoch: float = 1.0


FACTORS = {"bert4rec": Factors(step=1.4, answer=1.2, epoch=0.7)}  # the others are within a fifth of SASRec


def estimate_cell(cell: Cell, size: DataSize, costs: Costs = COSTS) -> float:
    """Return the seconds that a cell takes, without its backbone."""
    if not_on(cell.method, cell.variant, cell.backbone) is not None:
        return 0.0
    method = method_named(cell.method)
    users = min(size.users, method.most_users(cell.settings.max_users) or size.users)
    answers = costs.tracks if method.tracks is None else len(method.tracks)
    factors = FACTORS.get(cell.backbone, Factors())
    training = method.learns * cell.settings.generator.steps * (costs.step + costs.step_item * size.items)
    scoring = method.scores * users * answers * (costs.answer + costs.answer_item * size.items)
    return costs.start + factors.step * training + factors.answer * scoring


def estimate_requests(cell: Cell, data: LoadedData, costs: Costs = COSTS) -> float:
    """Return the seconds of a cell's answers to own requests, beside its training, and of a tuned encoder.

    Args:
        cell: The cell.
        data: Its data.
        costs: The table of costs.
    """
    method, size = method_named(cell.method), data.size
    users = min(size.users, method.most_users(cell.settings.max_users) or size.users)
    answers = method.scores * users * 4 * (costs.answer + costs.answer_item * size.items)
    tuned = cell.settings.config.get("encoder_tuning", "none") != "none"
    texts = cell.settings.generator.steps * cell.settings.generator.batch_size if tuned else 0
    return answers + texts * costs.tuned_text


def estimate_backbone(cell: Cell, size: DataSize, costs: Costs = COSTS) -> float:
    """Return the seconds that training the cell's backbone takes."""
    most = (cell.settings.backbone or backbone_options(cell.backbone)).epochs
    epochs = most if most < costs.epochs else costs.epochs * most / 30  # training stops early, of 30 epochs by default
    one = size.interactions * (costs.epoch + costs.epoch_item * size.items)
    return epochs * one * FACTORS.get(cell.backbone, Factors()).epoch


@dataclass(frozen=True)
class Timing:
    """The expected and the measured seconds of a finished job.

    Attributes:
        data: Name of the data.
        method: The method; "backbone" for the training of one.
        expected: Seconds by the table of costs.
        found: Seconds measured.
    """

    data: str
    method: str
    expected: float
    found: float


def refined(data: str, method: str, seconds: float, timings: Sequence[Timing]) -> float:
    """Return an estimate corrected by the finished jobs.

    Jobs of the same method on the same data count, or else those on the same data, or else all.

    Args:
        data: Name of the data.
        method: The method, or "backbone".
        seconds: Estimate by the table of costs.
        timings: Timings of finished jobs.
    """
    kinds: tuple[Callable[[Timing], bool], ...] = (
        lambda timing: timing.data == data and timing.method == method,
        lambda timing: timing.data == data,
        lambda timing: True,
    )
    for kind in kinds:
        ratios = [timing.found / timing.expected for timing in timings if timing.expected > 0 and kind(timing)]
        if ratios:
            return seconds * statistics.median(ratios)
    return seconds
