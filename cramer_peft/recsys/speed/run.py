"""Runs the speed benchmark: models, batches, rows, timing, memory."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from cramer_peft.errors import DataError, MissingExtraError
from cramer_peft.io import write_json
from cramer_peft.recsys.speed.memory import peak_bytes, weight_bytes
from cramer_peft.recsys.speed.models import SpeedModel, make_model, model_names
from cramer_peft.recsys.speed.report import row_figures
from cramer_peft.recsys.speed.rows import (
    Form,
    Subject,
    compiled_rows,
    default_encoder,
    flatness_rows,
    frozen_rows,
    our_rows,
    peft_rows,
    split,
    transformer_encoder_rows,
)
from cramer_peft.recsys.speed.timing import CLOCKS, measure


@dataclass(frozen=True)
class SpeedOptions:
    """What to measure.

    Attributes:
        models: Names of the models.
        batches: Batch sizes.
        gates: Forms of mask: ``scale``, ``signed``, ``topk``, ``low_rank:RANK``.
        adapters: Numbers of LoRA adapters in one batch.
        different: Numbers of different requests in one batch, each compared to one request for all rows.
        rounds: Number of pairs of each row.
        compiled: Whether to time compiled models, which takes minutes to compile.
        peft: Whether to time PEFT's adapters.
        memory: Whether to measure peak memory.
        clock: ``"wall"`` or ``"cpu"``; see :func:`~cramer_peft.recsys.speed.timing.measure`.
        rows: Only rows whose name holds one of these texts; empty: all. The frozen model is always there.
    """

    models: tuple[str, ...] = ("sasrec-64", "sasrec-256")
    batches: tuple[int, ...] = (1, 32, 256, 1024)
    gates: tuple[str, ...] = ("signed", "low_rank:4")
    adapters: tuple[int, ...] = (4, 16, 64, 256)
    different: tuple[int, ...] = (4, 32, 256, 1024)
    rounds: int = 15
    compiled: bool = True
    peft: bool = True
    memory: bool = True
    rows: tuple[str, ...] = ()
    clock: str = "wall"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            DataError: If one of them cannot be used.
        """
        unknown = sorted(set(self.models) - set(model_names()))
        if unknown:
            raise DataError(f"models: found {unknown}, expected some of {model_names()}.")
        for name, least in (("batches", 1), ("adapters", 1), ("different", 1)):
            if any(value < least for value in getattr(self, name)):
                raise DataError(f"{name}: found {getattr(self, name)}, expected numbers of at least {least}.")
        if self.rounds < 1:
            raise DataError(f"rounds: found {self.rounds}, expected at least 1.")
        if self.clock not in CLOCKS:
            raise DataError(f"clock: found {self.clock!r}, expected one of {list(CLOCKS)}.")
        for gate in self.gates:
            Form.parse(gate)


def run_speed(
    options: SpeedOptions, say: Callable[[str], None] = lambda _: None, output: Path | None = None
) -> dict[str, Any]:
    """Measure everything that the options ask for.

    Args:
        options: What to measure.
        say: Told what is being done.
        output: JSON file, written anew after each model and batch, so that a run that is stopped leaves its figures.

    Returns:
        ``{"environment", "options", "results", "left_out"}``; see :func:`measure_model` for one result.
    """
    report: dict[str, Any] = {
        "environment": environment(),
        "options": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(options).items()},
        "results": [],
        "left_out": [],
    }
    for name in options.models:
        try:
            model = make_model(name)
        except MissingExtraError as error:
            report["left_out"].append({"model": name, "reason": str(error)})
            say(f"{name} is left out: {error}")
            continue
        for batch in options.batches:
            say(f"{name}, batch {batch}")
            report["results"].append(measure_model(model, batch, options))
            if output is not None:
                write_json(output, report)
    return report


def environment() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "threads": torch.get_num_threads(),
    }


def measure_model(model: SpeedModel, batch: int, options: SpeedOptions) -> dict[str, Any]:
    """Time one model at one batch size.

    Returns:
        ``model``, ``batch``, ``length``; ``rows``: for each its name, what it is compared to (``against``),
        ``milliseconds`` (median), ``ratio`` (median over rounds) and its quartiles ``low`` and ``high``; with memory,
        ``peak_bytes`` of a call, ``weight_bytes``, ``peak_ratio``, and ``memory_ratio`` of both together; ``split``:
        per form of mask the milliseconds of encoding, generating gates, gating and scoring.
    """
    subjects = _subjects(model, batch, options)
    timings = measure([subject.row for subject in subjects], options.rounds, clock=options.clock)
    rows = [row_figures(timing) for timing in timings]
    if options.memory:
        _add_memory(rows, subjects)
    return {
        "model": model.name,
        "batch": batch,
        "length": model.length,
        "rows": rows,
        "split": {} if options.rows else _split(model, batch, options, rows),
    }


def _subjects(model: SpeedModel, batch: int, options: SpeedOptions) -> list[Subject]:
    encoder = default_encoder()
    subjects = frozen_rows(model, batch) + transformer_encoder_rows(batch)
    for gate in options.gates:
        subjects += our_rows(model, batch, Form.parse(gate), encoder)
        subjects += flatness_rows(model, batch, Form.parse(gate), encoder, options.different)
    if options.compiled:
        for gate in options.gates:
            subjects += compiled_rows(model, batch, Form.parse(gate), encoder)
    if options.peft:
        subjects += peft_rows(model, batch, options.adapters)
    if not options.rows:
        return subjects
    chosen = {s.row.name: s for s in subjects if any(text in s.row.name for text in options.rows)}
    needed = {"frozen", *chosen, *(subject.row.against for subject in chosen.values())}
    return [subject for subject in subjects if subject.row.name in needed]


def _add_memory(rows: list[dict[str, Any]], subjects: list[Subject]) -> None:
    held = {s.row.name: (peak_bytes(s.row), weight_bytes(s.modules)) for s in subjects}
    for row in rows:
        peak, weights = held[row["row"]]
        row["peak_bytes"], row["weight_bytes"] = peak, weights
        row["peak_ratio"] = peak / held[row["against"]][0]
        row["memory_ratio"] = (peak + weights) / sum(held[row["against"]])


def _split(model: SpeedModel, batch: int, options: SpeedOptions, rows: list[dict[str, Any]]) -> dict[str, Any]:
    milliseconds = {row["row"]: row["milliseconds"] for row in rows}
    found = {}
    for gate in options.gates:
        form = Form.parse(gate)
        parts = measure(split(model, batch, form, default_encoder()), options.rounds, clock=options.clock)
        scoring = milliseconds["frozen"]
        ready = next(row for row in rows if row["row"] == f"{form}: gates ready")
        found[str(form)] = {
            **{part.row: row_figures(part)["milliseconds"] for part in parts},
            "gating": scoring * (ready["ratio"] - 1),
            "scoring": scoring,
        }
    return found
