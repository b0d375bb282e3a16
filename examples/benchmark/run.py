"""Runs a plan's cells: data, backbone, method, measures; what is done is kept, what fails takes nothing along."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from benchmark.baselines import MaskRanker, OracleFilter, RankerTask, RequestRanker
from benchmark.cells import (
    BACKBONES,
    Cell,
    CellResult,
    Status,
    backbone_digest,
    cell_digest,
    stored_result,
)
from benchmark.data import LoadedData, load_data
from benchmark.methods import Method, mask_config, mask_config_on, method_named, not_on
from benchmark.plan import (
    Job,
    Timing,
    estimate_backbone,
    estimate_cell,
    refined,
)
from benchmark.redial import mask_scorer
from benchmark.study import digest_of_study, estimate_study, measured_study
from cramer_peft.errors import AdapterFileError, CramerError, DataError, MissingExtraError, MissingModelError
from cramer_peft.recsys.data.split import Split, TemporalSplit
from cramer_peft.recsys.devices import fastest_device, fastest_device_name
from cramer_peft.recsys.evaluation.evaluation import frozen_scorer
from cramer_peft.recsys.evaluation.measure import Setting, StrengthScorer, make_tracks, measure
from cramer_peft.recsys.evaluation.tracks import hold_out
from cramer_peft.recsys.recommender import BACKBONE, load_backbone, save_backbone
from cramer_peft.recsys.requests.text_encoders import request_encoder
from cramer_peft.recsys.training.backbone_training import train_backbone
from cramer_peft.storage import read_json, write_json

_STAMP = "benchmark.json"
HELD_OUT = 0.2
_NOT_HERE = (MissingModelError, MissingExtraError)


def digest_of(cell: Cell, data: LoadedData) -> str:
    """Digest of all that determines the cell's result."""
    config = mask_config_on(cell.backbone, data.size.items, mask_config(cell.method, cell.settings))
    return cell_digest(cell, data.digest, None if config is None else config.to_dict(), digest_of_study(cell))


def seconds_of(cell: Cell, data: LoadedData) -> float:
    """Seconds that a cell will take by the table of costs, without its backbone."""
    return estimate_cell(cell, data.size) if cell.study is None else estimate_study(cell, data)


# ---------------------------------------------------------------- one job


def backbone_seconds(cell: Cell, output: Path) -> float | None:
    """Seconds that training the cell's stored backbone took; None if it has to be trained."""
    folder = output / BACKBONES / cell.backbone_name
    try:
        stamp = read_json(folder / _STAMP)
    except AdapterFileError:
        return None
    digest = backbone_digest(cell, load_data(cell.source, cell.protocol).digest)
    return float(stamp["seconds"]) if stamp.get("digest") == digest else None


def prepare_backbone(cell: Cell, output: Path, progress: bool = False) -> float:
    """Train the backbone that a cell stands on and keep it, unless it is there; returns the seconds that took."""
    known = backbone_seconds(cell, output)
    if known is not None:
        return known
    data = load_data(cell.source, cell.protocol)
    start = time.perf_counter()
    model = _train(cell, data, progress)
    seconds = time.perf_counter() - start
    folder = output / BACKBONES / cell.backbone_name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STAMP).unlink(missing_ok=True)  # the stamp comes last: without it the weights do not count
    save_backbone(model, folder)
    write_json(folder / _STAMP, {"digest": backbone_digest(cell, data.digest), "seconds": seconds})
    return seconds


def _train(cell: Cell, data: LoadedData, progress: bool) -> Any:
    return train_backbone(cell.backbone, data.catalogue, data.split, cell.settings.backbone, cell.seed, progress)


def run_cell(cell: Cell, output: Path) -> CellResult:
    """Run one cell and write its result. Its backbone must be there.

    What cannot be run here gives an "empty" result with the reason: weights or a package are missing, or it needs the
    inside of another backbone.

    Raises:
        CramerError: If the data, the backbone or the settings cannot be used.
    """
    data = load_data(cell.source, cell.protocol)
    digest = digest_of(cell, data)
    reason = not_on(cell.method, cell.variant, cell.backbone)
    if reason is not None:
        result = CellResult(cell.identity, digest, "empty", reason)
        result.save(output, cell.name)
        return result
    backbone = load_backbone(output / BACKBONES / cell.backbone_name / BACKBONE, data.catalogue).to(fastest_device())
    try:
        measured = _measured if cell.study is None else measured_study
        result = measured(cell, data, backbone, digest)
    except _NOT_HERE as error:
        result = CellResult(cell.identity, digest, "empty", str(error))
    result.save(output, cell.name)
    return result


def _measured(cell: Cell, data: LoadedData, backbone: Any, digest: str) -> CellResult:
    method = method_named(cell.method)
    task, setting = task_and_setting(cell, data, backbone, method)
    start, cpu = time.perf_counter(), time.process_time()
    ranker = None if method.make is None else method.make(mask_config(cell.method, cell.settings), cell.settings)
    if ranker is not None:
        ranker.fit(task)
    trained, trained_cpu = time.perf_counter(), time.process_time()
    tracks = make_tracks(setting)
    if isinstance(ranker, OracleFilter):
        ranker.know(*(track.requests for name, track in tracks.items() if not name.endswith("shuffled")))
    measured = measure(
        setting,
        frozen_scorer(backbone),
        None if ranker is None else ranker.scores,
        _strength_of(ranker),
        tracks,
        method.reads,
    )
    figures = {
        "trainable": 0 if ranker is None else ranker.trainable,
        "trained_on": fastest_device_name(),
        "seconds": {
            "train": trained - start,
            "evaluate": time.perf_counter() - trained,
            "train_cpu": trained_cpu - cpu,  # of this process, which others' work does not lengthen
            "evaluate_cpu": time.process_time() - trained_cpu,
        },
        **measured.figures,
    }
    return CellResult(cell.identity, digest, figures=figures, values=measured.values)


def _strength_of(ranker: RequestRanker | None) -> StrengthScorer | None:
    """A mask ranker at a strength; the paper's gate has none."""
    masks = ranker.masks if isinstance(ranker, MaskRanker) else None
    if masks is None or masks.generator.gate.name == "topk":
        return None

    return lambda item_ids, requests, alpha: mask_scorer(masks, alpha)(item_ids, requests)


def task_and_setting(cell: Cell, data: LoadedData, backbone: Any, method: Method) -> tuple[RankerTask, Setting]:
    """What a method learns from, and what it is measured on; what is held out is in the latter alone."""
    settings, catalogue, split = cell.settings, data.catalogue, data.split
    options, unseen_attributes = settings.generator, None
    if settings.hold_out == "attributes":
        kept, unseen_attributes = hold_out(catalogue.attributes, HELD_OUT, cell.seed)
        options = replace(options, attributes=kept)
    taught, unseen_users = _taught(split, settings.hold_out == "users", cell.seed)
    limits = [limit for limit in (settings.max_users, method.max_users) if limit is not None]
    task = RankerTask(
        backbone, request_encoder(settings.encoder, catalogue, backbone), catalogue, taught, options, cell.seed
    )
    setting = Setting(
        catalogue,
        split.history("test"),
        split.test_target,
        int(backbone.max_length),
        cell.seed,
        settings.k,
        unseen_attributes,
        unseen_users,
        min(limits) if limits else None,
        method.tracks,
    )
    return task, setting


def _taught(split: Split, leave_out: bool, seed: int) -> tuple[Split, Tensor | None]:
    """The split that a method learns from, and which test users are not in its training."""
    chosen = torch.arange(len(split.train))
    if leave_out:
        chosen = torch.tensor(hold_out(range(len(split.train)), HELD_OUT, seed)[0])
    train = tuple(split.train[user] for user in chosen.tolist())
    if isinstance(split, TemporalSplit):
        taught = replace(split, train=train, train_users=split.train_users[chosen])
        unseen = ~torch.isin(split.test_users, taught.train_users)
        return taught, unseen if bool(unseen.any()) else None
    if not leave_out:
        return split, None
    unseen = torch.ones(len(split.train), dtype=torch.bool)
    unseen[chosen] = False
    return Split(train, split.validation_target[chosen], split.test_target[chosen]), unseen


# ---------------------------------------------------------------- all of them


def plan_jobs(cells: Iterable[Cell], output: Path) -> list[Job]:
    """Backbones and cells in order, each backbone before its first cell, with refined estimates.

    Raises:
        CramerError: If data cannot be loaded or split.
    """
    cells = list(cells)
    timings, jobs, prepared = stored_timings(cells, output), [], set()
    for cell in cells:
        data = load_data(cell.source, cell.protocol)
        name = cell.source.name
        if cell.backbone_name not in prepared:
            prepared.add(cell.backbone_name)
            seconds = refined(name, "backbone", estimate_backbone(cell, data.size), timings)
            jobs.append(Job(cell, True, seconds, backbone_seconds(cell, output) is not None))
        seconds = refined(name, cell.kind, seconds_of(cell, data), timings)
        jobs.append(Job(cell, False, seconds, stored_result(output, cell, digest_of(cell, data)) is not None))
    return jobs


def stored_timings(cells: Iterable[Cell], output: Path) -> list[Timing]:
    """What the finished ones of some cells took."""
    timings, backbones = [], set()
    for cell in cells:
        data = load_data(cell.source, cell.protocol)
        if cell.backbone_name not in backbones:
            backbones.add(cell.backbone_name)
            found = backbone_seconds(cell, output)
            if found is not None:
                timings.append(Timing(cell.source.name, "backbone", estimate_backbone(cell, data.size), found))
        stored = stored_result(output, cell, digest_of(cell, data))
        if stored is not None:
            seconds = sum(stored.figures["seconds"][part] for part in ("train", "evaluate"))
            timings.append(Timing(cell.source.name, cell.kind, seconds_of(cell, data), seconds))
    return timings


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: The job.
        status: "done", "empty" or "failed".
        reason: Why it is not done.
        seconds: It took.
    """

    job: Job
    status: Status
    reason: str | None
    seconds: float


def run_job(job: Job, output: Path) -> Outcome:
    """Run one job; whatever goes wrong is in the outcome, and a failed cell is written as such."""
    start = time.perf_counter()
    status: Status = "done"
    reason: str | None = None
    try:
        if job.backbone:
            prepare_backbone(job.cell, output)
        else:
            result = run_cell(job.cell, output)
            status, reason = result.status, result.reason
    except _NOT_HERE as error:
        status, reason = "empty", str(error)
    except Exception as error:  # one cell must not lose the others
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        reason = str(error) if isinstance(error, CramerError) else f"{type(error).__name__}: {error}"
        status = "failed"
        _write_failure(job, output, "failed", reason)
    return Outcome(job, status, reason, time.perf_counter() - start)


def _write_failure(job: Job, output: Path, status: Status, reason: str | None) -> None:
    if not job.backbone:
        digest = digest_of(job.cell, load_data(job.cell.source, job.cell.protocol))
        CellResult(job.cell.identity, digest, status, reason).save(output, job.cell.name)


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    workers: int = 1,
    budget_minutes: float | None = None,
    started: Callable[[Job], None] = lambda job: None,
) -> Iterator[Outcome]:
    """Run the jobs that are not stored; yields each outcome as it comes.

    A cell waits for its backbone; where that fails, its cells fail with the same reason. No job is begun that would,
    by its estimate, end after the budget.

    Args:
        jobs: By :func:`plan_jobs`.
        output: Folder of the results.
        workers: Processes; 1: this one, with as many threads as torch has. More: one thread each.
        budget_minutes: Of wall time; None: no limit.
        started: Called with each job as it begins.
    """
    output.mkdir(parents=True, exist_ok=True)
    pending = [job for job in jobs if not job.stored]
    missing = {job.cell.backbone_name for job in pending if job.backbone}
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    timings: list[Timing] = []
    with _Pool(workers) as pool:
        while pending or pool.running:
            while len(pool.running) < workers:
                job = _next(pending, missing, deadline, timings)
                if job is None:
                    break
                pending.remove(job)
                started(job)
                pool.submit(job, output)
            if not pool.running:
                return  # what is left does not fit the budget, or waits for what does not
            for outcome in pool.outcomes(output):
                if outcome.status == "done":
                    timings.append(_timing(outcome))
                yield outcome
                if outcome.job.backbone:
                    yield from _after_backbone(outcome, pending, missing, output)


def _next(pending: Sequence[Job], missing: set[str], deadline: float | None, timings: Sequence[Timing]) -> Job | None:
    left = float("inf") if deadline is None else deadline - time.monotonic()
    for job in pending:
        seconds = refined(job.cell.source.name, _kind(job), job.seconds, timings)
        if (job.backbone or job.cell.backbone_name not in missing) and seconds <= left:
            return job
    return None


def _kind(job: Job) -> str:
    return "backbone" if job.backbone else job.cell.kind


def _timing(outcome: Outcome) -> Timing:
    return Timing(outcome.job.cell.source.name, _kind(outcome.job), outcome.job.seconds, outcome.seconds)


def _after_backbone(outcome: Outcome, pending: list[Job], missing: set[str], output: Path) -> Iterator[Outcome]:
    name = outcome.job.cell.backbone_name
    if outcome.status == "done":
        missing.discard(name)
        return
    reason = f"its backbone could not be trained: {outcome.reason}"
    for job in [job for job in pending if job.cell.backbone_name == name]:
        pending.remove(job)
        _write_failure(job, output, outcome.status, reason)
        yield Outcome(job, outcome.status, reason, 0.0)


class _Pool:
    """Runs jobs in this process, or in others; where one dies, the jobs then running fail and the rest go on."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._finished: list[Outcome] = []
        self.running: dict[Future[Outcome] | int, Job] = {}

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: Job, output: Path) -> None:
        if self._workers == 1:
            self.running[len(self._finished)] = job
            self._finished.append(run_job(job, output))
            return
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._workers, context, _start_worker)
        self.running[self._executor.submit(run_job, job, output)] = job

    def outcomes(self, output: Path) -> list[Outcome]:
        """Wait for one job or more."""
        if self._workers == 1:
            found, self._finished = self._finished, []
            self.running.clear()
            return found
        futures = [future for future in self.running if isinstance(future, Future)]
        found = []
        for future in wait(futures, return_when=FIRST_COMPLETED).done:
            job = self.running.pop(future)
            try:
                found.append(future.result())
            except BrokenProcessPool:
                self._executor = None  # all its futures are broken; a new one takes what is left
                reason = "its process was ended, perhaps for want of memory: try --workers 1 or --max-users."
                _write_failure(job, output, "failed", reason)
                found.append(Outcome(job, "failed", reason, 0.0))
        return found


def _start_worker() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the Trainer prints there; it lives as long as the process)


def load_results(cells: Iterable[Cell], output: Path) -> list[CellResult]:
    """What is stored of some cells and up to date: done, empty or failed."""
    found = []
    for cell in cells:
        try:
            result = CellResult.load(output, cell.name)
        except DataError:
            continue
        if result.digest == digest_of(cell, load_data(cell.source, cell.protocol)):
            found.append(result)
    return found
