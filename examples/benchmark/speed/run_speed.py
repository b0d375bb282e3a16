"""Run the speed benchmark: models, batches, rows, timing, memory."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from benchmark.speed.device import check_device, device_name
from benchmark.speed.figures import row_figures
from benchmark.speed.graphs import graph_rows
from benchmark.speed.memory import peak_bytes, weight_bytes
from benchmark.speed.models import SpeedModel, make_model, model_names
from benchmark.speed.notes import Notes
from benchmark.speed.rows import (
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
from benchmark.speed.timing import CLOCKS, Row, measure
from cramer_peft.errors import DataError, MissingExtraError
from cramer_peft.storage import write_json


@dataclass(frozen=True)
class SpeedOptions:
    """The models, rows and clock of a run; ``speed.json`` holds them as ``options``.

    Attributes:
        models: Names of the models.
        batches: Batch sizes.
        gates: Forms of mask: ``scale``, ``signed``, ``topk``, ``low_rank:RANK``, ``rows``.
        adapters: Numbers of LoRA adapters in one batch.
        different: Numbers of different requests in one batch, each compared to one request for all rows.
        rounds: Number of pairs of each row.
        compiled: Whether to time compiled models, which takes minutes to compile.
        peft: Whether to time PEFT's adapters.
        memory: Whether to measure peak memory.
        clock: ``"wall"`` or ``"cpu"``; see :func:`~benchmark.speed.timing.measure`.
        device: Device of the models: ``"cpu"`` or ``"cuda"``.
        graphs: Whether to time CUDA graphs if the device is ``"cuda"``.
        items: Size of the recommenders' catalogue.
        rows: Only rows whose name contains one of these texts; empty: all. The frozen model is always included.
    """

    models: tuple[str, ...] = ("sasrec-64", "sasrec-256")
    batches: tuple[int, ...] = (1, 32, 256, 1024)
    gates: tuple[str, ...] = ("rows", "signed", "low_rank:4")
    adapters: tuple[int, ...] = (4, 16, 64, 256)
    different: tuple[int, ...] = (4, 32, 256, 1024)
    rounds: int = 15
    compiled: bool = True
    peft: bool = True
    memory: bool = True
    rows: tuple[str, ...] = ()
    clock: str = "wall"
    device: str = "cpu"
    graphs: bool = True
    items: int = 1682

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
        for name in ("rounds", "items"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}: found {getattr(self, name)}, expected at least 1.")
        if self.clock not in CLOCKS:
            raise DataError(f"clock: found {self.clock!r}, expected one of {list(CLOCKS)}.")
        check_device(self.device, self.clock)
        for gate in self.gates:
            Form.parse(gate)


def run_speed(
    options: SpeedOptions, say: Callable[[str], None] = lambda _: None, output: Path | None = None
) -> dict[str, Any]:
    """Measure all models and batches of the options.

    Args:
        options: Models, batches, rows and clock.
        say: Called with each model and batch before it is measured.
        output: JSON file, written again after each model and batch, so that an interrupted run leaves its figures.

    Returns:
        ``{"environment", "options", "results", "left_out"}``; see :func:`measure_model` for one result.
    """
    report: dict[str, Any] = {
        "environment": environment(options.device),
        "options": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(options).items()},
        "results": [],
        "left_out": [],
    }
    for name in options.models:
        try:
            model = make_model(name, options.items).to(options.device)
        except MissingExtraError as error:
            report["left_out"].append({"model": name, "reason": str(error)})
            say(f"{name} is left out: {error}")
            continue
        for batch in options.batches:
            say(f"{name}, batch {batch}")
            with _many_compiled() if options.compiled else nullcontext():
                report["results"].append(measure_model(model, batch, options))
            if output is not None:
                write_json(output, report)
    return report


def _many_compiled() -> Any:
    """Raise torch's limit of eight compiled versions of one function: all compiled rows run the same ``forward``."""
    import torch._dynamo.config as settings  # imported only here: it takes a second

    name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    return settings.patch({name: 256})  # type: ignore[attr-defined]


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return the versions, devices and settings that the figures depend on."""
    return {
        "device": device_name(device),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "encoder": default_encoder().name,
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
        ``model``, ``device``, ``batch``, ``length``; ``rows``: for each its name, what it is compared to (``against``),
        ``milliseconds`` (median), ``ratio`` (median over rounds) and its quartiles ``low`` and ``high``; with memory,
        ``peak_bytes`` of a call, ``weight_bytes``, ``peak_ratio``, and ``memory_ratio`` of both together; ``split``:
        per form of mask the milliseconds of encoding, generating gates, gating and scoring; ``checks``: for each CUDA
        graph, whether its scores are those of the eager call; ``notes``: rows that are left out, and why.
    """
    notes, checks = Notes(), list[dict[str, Any]]()
    subjects = _subjects(model, batch, options, notes, checks)
    timings = measure([s.row for s in subjects], options.rounds, clock=options.clock, device=options.device)
    rows = [row_figures(timing) for timing in timings]
    if options.memory:
        with notes.instead_of("memory"):
            _add_memory(rows, subjects, options.device)
    split: dict[str, Any] = {}
    if not options.rows:
        with notes.instead_of("split"):
            split = _split(model, batch, options, rows)
    return {
        "model": model.name,
        "device": device_name(options.device),
        "batch": batch,
        "length": model.length,
        "rows": rows,
        "split": split,
        "checks": checks,
        "notes": notes.found,
    }


def _subjects(
    model: SpeedModel, batch: int, options: SpeedOptions, notes: Notes, checks: list[dict[str, Any]]
) -> list[Subject]:
    found = _that_run(_chosen(_eager_and_compiled(model, batch, options, notes), options), notes)
    if options.device != "cuda" or not options.graphs:
        return found
    if options.rows and not any("CUDA graph" in text for text in options.rows):
        return found
    # The graphs come last, since a failed capture may leave more behind than it should.
    with notes.instead_of("CUDA graph"):
        forms = tuple(Form.parse(gate) for gate in options.gates)
        found += _that_run(graph_rows(model, batch, forms, default_encoder(), notes, checks), notes, found)
    return found


def _eager_and_compiled(model: SpeedModel, batch: int, options: SpeedOptions, notes: Notes) -> list[Subject]:
    encoder = default_encoder()
    subjects = frozen_rows(model, batch)
    with notes.instead_of("encoder like MiniLM, alone"):
        subjects += transformer_encoder_rows(batch, device=model.device)
    for form in map(Form.parse, options.gates):
        with notes.instead_of(f"{form}"):
            subjects += our_rows(model, batch, form, encoder)
            subjects += flatness_rows(model, batch, form, encoder, options.different)
        if options.compiled:
            with notes.instead_of(f"{form}: compiled"):
                subjects += compiled_rows(model, batch, form, encoder)
    if options.peft:
        with notes.instead_of("PEFT"):
            subjects += peft_rows(model, batch, options.adapters)
    return subjects


def _chosen(subjects: list[Subject], options: SpeedOptions) -> list[Subject]:
    if not options.rows:
        return subjects
    chosen = {s.row.name: s for s in subjects if any(text in s.row.name for text in options.rows)}
    needed = {"frozen", *chosen, *(subject.row.against for subject in chosen.values())}
    return [subject for subject in subjects if subject.row.name in needed]


def _that_run(subjects: list[Subject], notes: Notes, others: Sequence[Subject] = ()) -> list[Subject]:
    """Try each once, return those that run and note the others. The frozen model must run: its error is raised."""
    ran: list[Subject] = []
    for subject in subjects:
        with nullcontext() if subject.row.name == "frozen" else notes.instead_of(subject.row.name):
            _once(subject.row)
            ran.append(subject)
    names = {subject.row.name for subject in (*ran, *others)}
    for subject in ran:
        if subject.row.against not in names:
            notes.add(subject.row.name, f"{subject.row.against!r}, which it is compared to, could not be run")
    return [subject for subject in ran if subject.row.against in names]


def _once(row: Row) -> None:
    argument = row.prepare()
    with torch.no_grad(), row.around():
        row.run(argument)


def _add_memory(rows: list[dict[str, Any]], subjects: list[Subject], device: str) -> None:
    held = {}
    for subject in subjects:
        peak = peak_bytes(subject.row, device) if subject.peak_bytes is None else subject.peak_bytes
        held[subject.row.name] = peak, weight_bytes(subject.modules)
    for row in rows:
        (peak, weights), (other, other_weights) = held[row["row"]], held[row["against"]]
        row["peak_bytes"], row["weight_bytes"] = peak, weights
        if other > 0:
            row["peak_ratio"] = peak / other
        row["memory_ratio"] = (peak + weights) / (other + other_weights)


def _split(model: SpeedModel, batch: int, options: SpeedOptions, rows: list[dict[str, Any]]) -> dict[str, Any]:
    milliseconds = {row["row"]: row["milliseconds"] for row in rows}
    found = {}
    for gate in options.gates:
        form = Form.parse(gate)
        ready = next((row for row in rows if row["row"] == f"{form}: gates ready"), None)
        if ready is None:
            continue
        subjects = split(model, batch, form, default_encoder())
        parts = measure(subjects, options.rounds, clock=options.clock, device=options.device)
        scoring = milliseconds["frozen"]
        found[str(form)] = {
            **{part.row: row_figures(part)["milliseconds"] for part in parts},
            "gating": scoring * (ready["ratio"] - 1),
            "scoring": scoring,
        }
    return found
