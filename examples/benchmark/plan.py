"""Which cells a benchmark has, what each will cost, and which of them fit a budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmark.cells import (
    PROTOCOLS,
    Cell,
    CellSettings,
    DataSource,
    Protocol,
    RealLanguage,
    Transfer,
)
from benchmark.methods import (
    ABLATIONS,
    METHODS,
    ablation_on,
    mask_config,
    method_named,
    not_on,
)
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import BACKBONES
from cramer_peft.recsys.data.split import Stage
from cramer_peft.recsys.training.backbone_training import EXPANDED_POSITIONS, backbone_options

OURS = "ours"
HOLD_OUTS = {"unseen attributes": "attributes", "unseen users": "users"}
CARRIED = (OURS, "paper's gate", "paper's gate, our loss")
_CEILINGS = ("parsed filter", "oracle filter")
# every cell is measured with shuffled requests: training ours once more for that would double its cost
_FULL = tuple(name for name in METHODS if name != "ours, shuffled requests")


@dataclass(frozen=True)
class Matrix:
    """Defaults of a named matrix.

    Attributes:
        data: Names of data sets; none: they must be given.
        protocols: Splits.
        methods: Methods.
        seeds: Seeds.
        variants: Whether ablations, and what training leaves out for a test, are run on the first seed.
        steps: Steps of each generator's training; None: the default.
        epochs: Most epochs of each backbone's training; None: the default.
        backbones: Backbones.
        study: "real language" or "transfer": what is measured instead of the tracks; None: the tracks.
    """

    data: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: bool = False
    steps: int | None = None
    epochs: int | None = None
    backbones: tuple[str, ...] = ("sasrec",)
    study: Literal["real language", "transfer"] | None = None


MATRICES: dict[str, Matrix] = {
    "full": Matrix(("movielens-100k",), ("leave-one-out",), _FULL, (0, 1, 2), variants=True),
    "headline": Matrix(
        ("movielens-1m",),
        ("temporal", "leave-one-out"),
        ("frozen", "ours", "paper's gate", "text fusion", "query-seqrec joined", *_CEILINGS),
        (0, 1, 2),
    ),
    "others": Matrix((), ("leave-one-out",), ("frozen", "ours", "paper's gate", "text fusion", *_CEILINGS), (0,)),
    "backbones": Matrix(
        ("movielens-100k",),
        ("leave-one-out",),
        ("frozen", "ours", "paper's gate", "text fusion"),
        (0,),
        backbones=("bert4rec", "gru4rec", "replay-sasrec"),
    ),
    "real-language": Matrix(
        (),
        ("leave-one-out",),
        ("frozen", "ours", "paper's gate", "text fusion"),
        (0, 1, 2),
        steps=500,
        study="real language",
    ),
    "transfer": Matrix(("movielens-100k",), ("leave-one-out",), (OURS,), (0, 1, 2), steps=300, study="transfer"),
    "quick": Matrix(
        ("movielens-100k",),
        ("leave-one-out",),
        ("frozen", "ours", "paper's gate", "text fusion", *_CEILINGS),
        (0,),
        steps=30,
        epochs=1,
    ),
}


@dataclass(frozen=True)
class PlanOptions:
    """What is run; whatever is left empty is the matrix's.

    Attributes:
        matrix: A key of ``MATRICES``.
        sources: Data sets.
        protocols: Splits.
        backbones: Names of backbones.
        methods: Methods; given, only the variants that are named are run.
        variants: Names of ablations of ours and of ``HOLD_OUTS``.
        seeds: Seeds.
        steps: Steps of each generator's training.
        epochs: Most epochs of each backbone's training.
        settings: The rest, for all cells.
        dialogues: File of film dialogues, for real language.
        target: The other data, for transfer.
        same_items: Whether equal titles are the same item in both, for transfer.
        full_training: Whether transfer is compared with all steps on the target alone.
        stage: Whose answers real language and transfer measure; None: "validation".
    """

    matrix: str = "full"
    sources: tuple[DataSource, ...] = ()
    protocols: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    epochs: int | None = None
    settings: CellSettings = field(default_factory=CellSettings)
    dialogues: str | None = None
    target: DataSource | None = None
    same_items: bool = False
    full_training: bool = False
    stage: str | None = None


def plan_cells(options: PlanOptions) -> list[Cell]:
    """The cells of a plan, in the order in which they are run.

    Raises:
        ConfigError: If a name is unknown, there is no data, or two data sets have one name.
    """
    matrix = _named("matrix", options.matrix, MATRICES)
    sources = options.sources or tuple(DataSource(name) for name in matrix.data)
    if not sources:
        raise ConfigError(f"the matrix {options.matrix!r} has no data of its own: give --data NAME or FOLDER.")
    sources = tuple(replace(source, data=str(_absolute(source.data))) for source in sources)
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError(f"data: {names} repeat a name, and results are kept by it. Rename a folder.")
    study = _study(options, matrix)
    protocols = _protocols(options.protocols) or matrix.protocols
    methods = options.methods or matrix.methods
    for method in methods:
        method_named(method)
    variants = options.variants or ((*ABLATIONS, *HOLD_OUTS) if matrix.variants and not options.methods else ())
    seeds = options.seeds or matrix.seeds
    cells = []
    for source in sources:
        for protocol in protocols:
            for backbone in options.backbones or matrix.backbones:
                place = source, protocol, backbone
                settings = _settings(options, matrix, backbone)
                if isinstance(study, Transfer):
                    settings = replace(settings, config={**_without_head(backbone), **settings.config})
                for number, seed in enumerate(seeds):
                    cells += [Cell(*place, method, seed, None, settings) for method in methods]
                    if number == 0:
                        cells += [
                            Cell(*place, OURS, seed, variant, _changed(variant, settings, backbone))
                            for variant in variants
                        ]
    if study is not None:
        cells = [replace(cell, study=study) for cell in cells]
    for cell in cells:
        _check_study(cell)
        mask_config(cell.method, cell.settings)  # an impossible one is told of before anything runs
    return cells


def _study(options: PlanOptions, matrix: Matrix) -> RealLanguage | Transfer | None:
    """What is measured instead of the tracks; all that is said of it is looked at before anything runs."""
    given = {
        "dialogues": options.dialogues is not None,
        "target": options.target is not None,
        "same items": options.same_items,
        "full training": options.full_training,
        "stage": options.stage not in (None, "test"),
    }
    allowed = {"real language": ("dialogues", "stage"), "transfer": ("target", "same items", "full training", "stage")}
    own = () if matrix.study is None else allowed[matrix.study]
    wrong = [name for name, there in given.items() if there and name not in own]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: not of the matrix {options.matrix!r}. Leave it out, or name another.")
    stages: dict[str, Stage] = {"validation": "validation", "test": "test"}
    stage = options.stage or "validation"
    if stage not in stages:
        raise ConfigError(f"stage: found {stage!r}, expected validation or test.")
    if matrix.study == "real language":
        if options.dialogues is None:
            raise ConfigError(f"the matrix {options.matrix!r} needs a file of dialogues: give --dialogues FILE.")
        return RealLanguage(str(Path(options.dialogues).resolve()), stages[stage])
    if matrix.study == "transfer":
        if options.target is None:
            raise ConfigError(f"the matrix {options.matrix!r} needs other data: give --target NAME or FOLDER.")
        target = replace(options.target, data=str(_absolute(options.target.data)))
        return Transfer(target, stages[stage], options.same_items, options.full_training)
    return None


def _without_head(backbone: str) -> dict[str, Any]:
    """What can be carried over: the layer that scores the items is another one in each domain."""
    return {"target_modules": getattr(BACKBONES.get(backbone), "default_targets", None)}


def _check_study(cell: Cell) -> None:
    if cell.study is None:
        return
    if cell.settings.hold_out is not None:
        raise ConfigError(f"variant: {cell.variant!r} holds out what only the tracks ask for; name another matrix.")
    if isinstance(cell.study, RealLanguage) and cell.method == "oracle filter":
        raise ConfigError(f"method: {cell.method!r} knows what made-up requests mean, and no others. Leave it out.")
    if isinstance(cell.study, Transfer):
        if cell.method not in CARRIED:
            raise ConfigError(f"method: found {cell.method!r}, expected masks to carry over: {', '.join(CARRIED)}.")
        if cell.backbone != "sasrec":
            raise ConfigError(f"backbone: found {cell.backbone!r}; items of other data are learned on sasrec alone.")


def _absolute(data: str) -> str | Path:
    """A folder's path, so that its name is told from its place; a name stays as it is."""
    return Path(data).resolve() if Path(data).is_dir() else data


def _named(kind: str, name: str, among: Mapping[str, Matrix]) -> Matrix:
    if name not in among:
        raise ConfigError(f"{kind}: found {name!r}, expected one of {', '.join(among)}.")
    return among[name]


def _protocols(names: Iterable[str]) -> tuple[Protocol, ...]:
    found = []
    for name in names:
        known = [protocol for protocol in PROTOCOLS if protocol == name]
        if not known:
            raise ConfigError(f"protocol: found {name!r}, expected one of {', '.join(PROTOCOLS)}.")
        found += known
    return tuple(found)


def _settings(options: PlanOptions, matrix: Matrix, backbone: str) -> CellSettings:
    settings = options.settings
    steps = options.steps if options.steps is not None else matrix.steps
    epochs = options.epochs if options.epochs is not None else matrix.epochs
    if steps is not None:
        settings = replace(settings, generator=replace(settings.generator, steps=steps))
    if getattr(BACKBONES.get(backbone), "expands_positions", False):
        positions = min(settings.generator.positions, EXPANDED_POSITIONS)
        settings = replace(settings, generator=replace(settings.generator, positions=positions))
    if epochs is not None:
        settings = replace(settings, backbone=replace(settings.backbone or backbone_options(backbone), epochs=epochs))
    return settings


def _changed(variant: str, settings: CellSettings, backbone: str) -> CellSettings:
    if variant == "unseen attributes":
        return replace(settings, hold_out="attributes")
    if variant == "unseen users":
        return replace(settings, hold_out="users")
    if variant not in ABLATIONS:
        names = ", ".join(map(repr, (*ABLATIONS, *HOLD_OUTS)))
        raise ConfigError(f"variant: found {variant!r}, expected one of {names}.")
    ablation = ablation_on(variant, backbone)
    return replace(
        settings,
        config={**settings.config, **ablation.config},
        generator=replace(settings.generator, **ablation.generator),
        encoder=ablation.encoder or settings.encoder,
    )


# ---------------------------------------------------------------- cost


@dataclass(frozen=True)
class DataSize:
    """What cost grows with.

    Attributes:
        users: Test users.
        items: Items of the catalogue.
        interactions: Of all users, in training.
    """

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class Costs:
    """Seconds on one core, measured on MovieLens-100k with SASRec; split in a part that grows with the items.

    Attributes:
        start: Of every cell: loading and fitting what is not trained.
        step: Of a training step of ours.
        step_item: The same for each item of the catalogue.
        answer: Of a user's answer to one track, with its metrics.
        answer_item: The same for each item.
        tracks: Answers asked of each user: tracks and strengths.
        epoch: Of an epoch of a backbone's training, for each interaction.
        epoch_item: The same for each item.
        epochs: Epochs after which training usually stops.
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


COSTS = Costs()


@dataclass(frozen=True)
class Factors:
    """What a backbone costs, as a multiple of SASRec."""

    step: float = 1.0
    answer: float = 1.0
    epoch: float = 1.0


FACTORS = {"bert4rec": Factors(step=1.4, answer=1.2, epoch=0.7)}  # the others are within a fifth of SASRec


def estimate_cell(cell: Cell, size: DataSize, costs: Costs = COSTS) -> float:
    """Seconds that a cell will take, without its backbone."""
    if not_on(cell.method, cell.variant, cell.backbone) is not None:
        return 0.0
    method = method_named(cell.method)
    users = min(size.users, *(limit for limit in (cell.settings.max_users, method.max_users) if limit), size.users)
    asked = costs.tracks if method.tracks is None else len(method.tracks)
    factors = FACTORS.get(cell.backbone, Factors())
    training = method.learns * cell.settings.generator.steps * (costs.step + costs.step_item * size.items)
    answers = method.scores * users * asked * (costs.answer + costs.answer_item * size.items)
    return costs.start + factors.step * training + factors.answer * answers


def estimate_backbone(cell: Cell, size: DataSize, costs: Costs = COSTS) -> float:
    """Seconds that training the cell's backbone will take."""
    most = (cell.settings.backbone or backbone_options(cell.backbone)).epochs
    epochs = most if most < costs.epochs else costs.epochs * most / 30  # early stopping, of 30 epochs by default
    one = size.interactions * (costs.epoch + costs.epoch_item * size.items)
    return epochs * one * FACTORS.get(cell.backbone, Factors()).epoch


@dataclass(frozen=True)
class Timing:
    """What a finished job was thought to take, and took.

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
    """An estimate corrected by what finished jobs took: of the same method on the same data, else on the same data,
    else of all.

    Args:
        data: Name of the data.
        method: The method, or "backbone".
        seconds: By the table of costs.
        timings: Of finished jobs.
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


@dataclass(frozen=True)
class Job:
    """A cell to run, or (with ``cell`` standing for all that share it) a backbone to train.

    Attributes:
        cell: The cell.
        backbone: Whether only the backbone is trained.
        seconds: Estimate.
        stored: Whether its result is there already.
    """

    cell: Cell
    backbone: bool
    seconds: float
    stored: bool = False

    @property
    def label(self) -> str:
        """For tables."""
        if self.backbone:
            return f"backbone {self.cell.backbone}"
        return self.cell.method if self.cell.variant is None else f"{self.cell.method}: {self.cell.variant}"


def within(jobs: Sequence[Job], minutes: float, workers: int) -> tuple[list[Job], list[Job]]:
    """The jobs that fit a budget, in their order, and those that do not; a backbone counts with its first cell.

    Args:
        jobs: Backbones and cells, each backbone before its cells.
        minutes: Of wall time.
        workers: Processes that share the work.

    Raises:
        ConfigError: If not even the first cell to be run fits.
    """
    left = minutes * 60 * workers
    kept: list[Job] = []
    cut: list[Job] = []
    waiting: dict[str, Job] = {}
    for job in jobs:
        if job.stored:
            kept.append(job)
        elif job.backbone:
            waiting[job.cell.backbone_name] = job
        else:
            needed = [waiting[job.cell.backbone_name]] if job.cell.backbone_name in waiting else []
            cost = job.seconds + sum(other.seconds for other in needed)
            if cost > left:
                cut.append(job)
                continue
            left -= cost
            waiting.pop(job.cell.backbone_name, None)
            kept += [*needed, job]
    if cut and all(job.stored for job in kept):
        first = cut[0]
        before = waiting.get(first.cell.backbone_name)
        seconds = first.seconds + (before.seconds if before else 0.0)
        raise ConfigError(
            f"nothing fits {minutes:g} minutes: the first cell, {first.cell.name}, needs about {seconds / 60:.1f} on "
            "one core. Raise --budget-minutes, or lower --steps, --epochs or --max-users."
        )
    return kept, cut
