"""Turn options into the cells of a plan, and refuse impossible options before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmark.cells import (
    PROTOCOLS,
    Cell,
    CellSettings,
    DataSource,
    OwnRequests,
    Protocol,
    RealLanguage,
    Study,
    Transfer,
)
from benchmark.methods import CRAMER, OURS, mask_config, method_named
from benchmark.plan.matrices import MATRICES, Matrix
from benchmark.plan.request_cells import request_cells
from benchmark.variants import ABLATIONS, HOLD_OUTS, varied_settings
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import BACKBONES
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.requests.catalogue_encoder import TEXT_ENCODER
from cramer_peft.recsys.training.backbone_training import backbone_options
from cramer_peft.recsys.training.generator_training import EXPANDED_POSITIONS

CARRIED = (OURS,)  # methods whose masks can be used on another domain
_OPTIONS_OF = {
    None: (),
    "real language": ("dialogues", "stage"),
    "transfer": ("target", "full training", "stage"),
    "stated": ("stage", "probe"),
    "history": ("stage", "probe"),
}


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan; the matrix fills in those that are left empty.

    Attributes:
        matrix: A key of ``MATRICES``.
        sources: Data sets.
        protocols: Splits.
        backbones: Names of backbones.
        methods: Methods; if given, only the variants that are named are run.
        variants: Keys of ``ABLATIONS`` and ``HOLD_OUTS``, of ours; for stated requests of ``STATED_HOLD_OUTS``, of
            every method; for the paper of ``PAPER_VARIANTS``, of CRAMER. Without methods, only what they change is run.
        seeds: Seeds.
        steps: Steps of each generator's training.
        epochs: Most epochs of each backbone's training.
        settings: Other settings of all cells.
        dialogues: File of film dialogues, for real language.
        target: The other data, for transfer.
        full_training: Whether to compare with all training steps on the target alone, for transfer.
        stage: Stage that real language and transfer measure; None: "validation". Own requests: None is "test".
        probe: Attribute whose share is measured under fixed sentences, for own requests.
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
    full_training: bool = False
    stage: str | None = None
    probe: str | None = None


def plan_cells(options: PlanOptions) -> list[Cell]:
    """Return the cells of a plan, in the order in which they are run.

    Raises:
        ConfigError: If a name is unknown, there is no data, or two data sets have one name.
    """
    if options.matrix not in MATRICES:
        raise ConfigError(f"matrix: found {options.matrix!r}, expected one of {', '.join(MATRICES)}.")
    matrix = MATRICES[options.matrix]
    sources = _sources(options, matrix)
    study = _study(options, matrix)
    methods = options.methods or _default_methods(options, matrix)
    for method in methods:
        method_named(method)
    every = matrix.variants and not options.methods and not options.variants
    variants = None if every else options.variants
    cells: list[Cell] = []
    for source in sources:
        for protocol in _protocols(options.protocols) or matrix.protocols:
            for backbone in options.backbones or matrix.backbones:
                settings = _settings(options, matrix, backbone)
                if isinstance(study, OwnRequests):
                    some = Cell(source, protocol, backbone, methods[0], 0, None, settings, study)
                    cells += request_cells(some, methods, variants, options.seeds or matrix.seeds)
                    continue
                if isinstance(study, Transfer):
                    settings = replace(settings, encoder=settings.encoder or TEXT_ENCODER)
                for number, seed in enumerate(options.seeds or matrix.seeds):
                    own = [
                        (OURS, variant, varied_settings(variant, settings, backbone))
                        for variant in ((*ABLATIONS, *HOLD_OUTS) if variants is None else variants)
                        if number == 0
                    ]
                    cells += [
                        Cell(source, protocol, backbone, method, seed, variant, chosen, study)
                        for method, variant, chosen in [*((method, None, settings) for method in methods), *own]
                    ]
    for cell in cells:
        _check_study(cell)
        mask_config(cell.method, cell.settings)  # raises for an impossible configuration
    return cells


def _default_methods(options: PlanOptions, matrix: Matrix) -> tuple[str, ...]:
    """Return a matrix's methods; if variants are named, those alone that its variants change."""
    if not options.variants or matrix.study == "stated":  # there, every method is varied
        return matrix.methods
    return (CRAMER,) if matrix.study == "history" else (OURS,)


def _sources(options: PlanOptions, matrix: Matrix) -> tuple[DataSource, ...]:
    sources = options.sources or tuple(DataSource(name) for name in matrix.data)
    if not sources:
        raise ConfigError(f"the matrix {options.matrix!r} has no data of its own: give --data NAME or FOLDER.")
    sources = tuple(replace(source, data=_resolved(source.data)) for source in sources)
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ConfigError(f"data: {names} repeat a name, and results are kept by it. Rename a folder.")
    return sources


def _resolved(data: str) -> str:
    """Return the absolute path of a folder, whose last part is its name; any other text as it is."""
    return str(Path(data).resolve()) if Path(data).is_dir() else data


def _protocols(names: Iterable[str]) -> tuple[Protocol, ...]:
    found: list[Protocol] = []
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


# ---------------------------------------------------------------- studies


def _study(options: PlanOptions, matrix: Matrix) -> Study | None:
    """Return the study that replaces the tracks; None if the matrix has none."""
    given = {
        "dialogues": options.dialogues is not None,
        "target": options.target is not None,
        "full training": options.full_training,
        "probe": options.probe is not None,
        "stage": options.stage not in (None, "test"),  # all other matrices measure the test
    }
    wrong = [name for name, there in given.items() if there and name not in _OPTIONS_OF[matrix.study]]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: not an option of the matrix {options.matrix!r}. Leave it out, or name another matrix."
        )
    stages: dict[str, Stage] = {"validation": "validation", "test": "test"}
    stage = options.stage or ("test" if matrix.study in ("stated", "history") else "validation")
    if stage not in stages:
        raise ConfigError(f"stage: found {stage!r}, expected validation or test.")
    if matrix.study in ("stated", "history"):
        return OwnRequests(matrix.study, stages[stage], options.probe)
    if matrix.study == "real language":
        if options.dialogues is None:
            raise ConfigError(
                f"the matrix {options.matrix!r} needs a file of dialogues: set dialogues in --config FILE."
            )
        return RealLanguage(str(Path(options.dialogues).resolve()), stages[stage])
    if matrix.study == "transfer":
        if options.target is None:
            raise ConfigError(f"the matrix {options.matrix!r} needs other data: set target in --config FILE.")
        target = replace(options.target, data=_resolved(options.target.data))
        return Transfer(target, stages[stage], options.full_training)
    return None


def _check_study(cell: Cell) -> None:
    if cell.study is None or isinstance(cell.study, OwnRequests):
        return
    if cell.settings.hold_out is not None:
        raise ConfigError(
            f"variant: {cell.variant!r} holds out data that only the tracks measure; name another matrix."
        )
    if isinstance(cell.study, RealLanguage) and cell.method == "oracle filter":
        raise ConfigError(f"method: {cell.method!r} knows the meaning of made-up requests only. Leave it out.")
    if isinstance(cell.study, Transfer):
        if cell.method not in CARRIED:
            raise ConfigError(f"method: found {cell.method!r}, expected masks to carry over: {', '.join(CARRIED)}.")
        if cell.settings.encoder != TEXT_ENCODER:
            raise ConfigError(
                f"encoder: found {cell.settings.encoder!r}, expected {TEXT_ENCODER!r}, the only one that reads another "
                "catalogue as it reads its own. Leave it out."
            )
        if "target_modules" in cell.settings.config:
            raise ConfigError(f"variant: {cell.variant!r} masks layers inside, which are others in each backbone.")
