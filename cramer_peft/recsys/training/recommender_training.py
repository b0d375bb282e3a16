"""Training of a recommender that answers requests, on a user's own data."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cramer_peft import RequestMaskConfig
from cramer_peft.encoders import CachedEncoder, encoder_of_width, make_encoder
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import load_checkpoint, save_backbone
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER, check_backbone_name
from cramer_peft.recsys.backbones.weights import WEIGHT_NAMES
from cramer_peft.recsys.data.own_data import Columns, OwnData, Protocol, load_own_data
from cramer_peft.recsys.data.tables import Tables, data_name
from cramer_peft.recsys.evaluation.results import TrackResult
from cramer_peft.recsys.folder import ADAPTER_FOLDER, TRAINING_FILE, keep_card
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.reading import as_path, printable
from cramer_peft.recsys.recommender import CATALOGUE_FILE, RequestRecommender, evaluate_masks, tracks_as_dict
from cramer_peft.recsys.requests.hearing import Parts
from cramer_peft.recsys.requests.request_encoders import CATALOGUE_ENCODERS, describe_encoder, request_encoder
from cramer_peft.recsys.requests.sources import ATTRIBUTES, Weights, check_weights
from cramer_peft.recsys.training.backbone_training import BackboneOptions, backbone_options, train_backbone
from cramer_peft.recsys.training.generator_training import check_options, generator_options, train_generator
from cramer_peft.recsys.training.reports import ReportTo, report_arguments
from cramer_peft.recsys.training.request_batches import GeneratorOptions
from cramer_peft.recsys.training.trial import check_masks, check_output, check_seed
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import new_version, write_json
from cramer_peft.training import Checkpoints, Processes

DEFAULT_BACKBONE = "sasrec"
STALE_WEIGHTS = rf"{BACKBONE_FOLDER}/{WEIGHT_NAMES}"  # of a backbone that was there before


@dataclass(frozen=True)
class TrainOptions:
    """Options of a recommender's training.

    Attributes:
        data: A data set's name, a folder of atomic files, or tables.
        output: Folder of the recommender, a path or a text, as ``checkpoint``.
        backbone: A key of ``BACKBONES``; None: SASRec, or the kind that ``checkpoint`` holds.
        checkpoint: Folder of a trained backbone, to skip its training.
        protocol: The kind of split.
        columns: What to read of the tables; columns that ``data`` names itself count more.
        config: Fields of :class:`RequestMaskConfig` that differ from the default.
        epochs: Most epochs of the backbone; None: its default.
        batch_size: Histories in a step of either training, of all processes together; None: the defaults.
        negatives: Items sampled for a step of either training, beside the next ones; None: by the catalogue's size.
        generator: Options of the generator's training; None: the default for the backbone.
        requests: The weight of each source of requests, as for :func:`train_generator`; None: what the data states and
            sentences about attributes alike, or what there is of them.
        seed: Seed of everything that is random.
        users: Evaluate at most so many validation users; None: all.
        progress: Print lines of progress, to standard error.
        checkpoints: Folder for the state of both trainings, to resume after a kill; None: no checkpoints.
        report_to: Where both trainings report, as for :func:`train_backbone`.
    """

    data: str | os.PathLike[str] | Tables
    output: Path
    backbone: str | None = None
    checkpoint: Path | None = None
    protocol: Protocol = "leave-one-out"
    columns: Columns = field(default_factory=Columns)
    config: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    negatives: int | None = None
    generator: GeneratorOptions | None = None
    requests: Weights | None = None
    seed: int = 0
    users: int | None = None
    progress: bool = True
    checkpoints: Checkpoints | None = None
    report_to: ReportTo = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", as_path(self.output))
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", as_path(self.checkpoint))


@dataclass(frozen=True)
class Trained:
    """A trained recommender, its data, and its validation; ``tracks`` is empty on all processes but the first."""

    recommender: RequestRecommender
    data: OwnData
    tracks: dict[str, TrackResult]


def train_recommender(options: TrainOptions, say: Callable[[str], None] = print) -> Trained:
    """Train a backbone, unless one is given, and a generator of masks for it; save both with the catalogue.

    What can be known first is checked first, on an untrained backbone. The new files take the place of older ones
    at the end: after an error, Ctrl-C included, the output is as it was.

    Under ``accelerate launch`` all processes train both; only the first one evaluates, writes and calls ``say``.

    Args:
        options: Options of the training.
        say: Called with a line for each step.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If the backbone or a field of ``config`` is unknown or impossible, or the checkpoints do not fit.
        DataError: If the data or the checkpoint cannot be used.
        DownloadError: If a named data set cannot be fetched.
        EncoderError: If the request encoder is unknown, or not as wide as ``request_dim``.
        MissingExtraError: If a package is not installed.
        TargetModuleError: If the backbone has no such modules.
    """
    first = Processes.launched().writes
    say = say if first else lambda line: None
    config = _checked_config(options)
    say(f"reading {data_name(options.data)}")
    needs = None if options.requests is None else ATTRIBUTES in options.requests
    data = load_own_data(options.data, options.protocol, options.columns, needs)
    say(data.describe())
    stated = data.describe_requests()
    if stated is not None:
        say(stated)
    if options.generator is not None:
        check_options(options.generator, config, data.catalogue)
    parts: Parts | None = None
    if options.checkpoint is None:
        settings = _backbone_settings(options)
        parts = check_masks(
            _name(options),
            data,
            config,
            options.config.get("encoder"),
            settings,
            options.generator,
            options.negatives,
            options.requests,
        )
    if not first:
        return _trained(options, config, data, parts, None, say)
    with new_version(options.output, STALE_WEIGHTS) as folder:
        return _trained(options, config, data, parts, folder, say)


def _checked_config(options: TrainOptions) -> RequestMaskConfig:
    """Return the configuration of the masks, after all checks that need no data."""
    config = mask_config(options.config)
    check_seed(options.seed)
    report_arguments(options.report_to)  # raises, if a package is missing
    if options.requests is not None:
        check_weights(options.requests)
    check_output(options.output, (BACKBONE_FOLDER, ADAPTER_FOLDER), (CATALOGUE_FILE, TRAINING_FILE))
    if options.backbone is not None:
        check_backbone_name(options.backbone)
    if options.config.get("encoder") not in CATALOGUE_ENCODERS:
        encoder_of_width(CachedEncoder(make_encoder(str(config.encoder), config.encoder_options)), config.request_dim)
    if options.checkpoints is not None:
        for name in ("backbone", "generator"):
            options.checkpoints.below(name).last()
    return config


def _trained(
    options: TrainOptions,
    config: RequestMaskConfig,
    data: OwnData,
    parts: Parts | None,
    folder: Path | None,
    say: Callable[[str], None],
) -> Trained:
    """Train both, and evaluate; write everything into a folder, unless it is None."""
    if folder is not None:
        data.catalogue.save(folder / CATALOGUE_FILE)  # first, because it may be too large
    start = time.perf_counter()
    backbone = _backbone(options, data, say)
    if folder is not None:
        save_backbone(backbone, folder, data.catalogue)
    trained = time.perf_counter()
    recommender, generator = _adapted(options, config, backbone, data, parts, say)
    seconds = {"backbone": trained - start, "generator": time.perf_counter() - trained}
    if folder is None:
        return Trained(recommender, data, {})
    keep_card(options.output, folder)
    recommender.save(folder)
    say("evaluating on the validation users")
    tracks = evaluate_masks(recommender.masks, data, "validation", options.seed, options.users)
    used = dataclasses.replace(options, data=data.name, columns=data.columns)
    _write_training(folder, used, backbone, generator, seconds, tracks)
    return Trained(dataclasses.replace(recommender, folder=options.output), data, tracks)


def mask_config(values: dict[str, Any]) -> RequestMaskConfig:
    """Return a configuration from some of its fields."""
    known = {item.name for item in dataclasses.fields(RequestMaskConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"config: unknown fields {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    try:
        return RequestMaskConfig(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # PEFT's own, of its fields
        raise ConfigError(f"config: {error}") from error


def _name(options: TrainOptions) -> str:
    return options.backbone or DEFAULT_BACKBONE


def _backbone_settings(options: TrainOptions) -> BackboneOptions:
    """Return the options of the backbone's training."""
    changes = {"epochs": options.epochs, "batch_size": options.batch_size}
    given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    return dataclasses.replace(backbone_options(_name(options)), **given)


def _backbone(options: TrainOptions, data: OwnData, say: Callable[[str], None]) -> Any:
    if options.checkpoint is None:
        name, settings = _name(options), _backbone_settings(options)
        say(f"training the backbone, {name}")
        kept = None if options.checkpoints is None else options.checkpoints.below("backbone")
        return train_backbone(
            name,
            data.catalogue,
            data.split,
            settings,
            options.seed,
            options.progress,
            options.negatives,
            kept,
            options.report_to,
        )
    folder = options.checkpoint
    say(f"loading the backbone from {folder.name}")
    backbone = load_checkpoint(folder, data.catalogue)
    if options.backbone not in (None, backbone.name):
        raise ConfigError(f"backbone: found {options.backbone!r}, but {folder} holds {backbone.name!r}. Leave one out.")
    return backbone


def _adapted(
    options: TrainOptions,
    config: RequestMaskConfig,
    backbone: Any,
    data: OwnData,
    parts: Parts | None,
    say: Callable[[str], None],
) -> tuple[RequestRecommender, GeneratorOptions]:
    """Mask a frozen backbone and train the generator; return it with the options used."""
    torch.manual_seed(options.seed)
    encoder = request_encoder(options.config.get("encoder"), data.catalogue, backbone, config.encoder_options, parts)
    masks = mask_backbone(backbone, data.catalogue, config, encoder)
    say(describe_encoder(encoder))
    say(f"training the generator ({masks.get_nb_trainable_parameters()[0]:,} parameters)")
    generator = options.generator or generator_options(backbone)
    if options.batch_size is not None:
        generator = dataclasses.replace(generator, batch_size=options.batch_size)
    kept = None if options.checkpoints is None else options.checkpoints.below("generator")
    train_generator(
        masks,
        data.catalogue,
        data.split,
        generator,
        options.seed,
        options.progress,
        kept,
        options.negatives,
        options.requests,
        data.said(),
        options.report_to,
    )
    return RequestRecommender(masks, data.catalogue), generator


def _write_training(
    folder: Path,
    options: TrainOptions,
    backbone: Any,
    generator: GeneratorOptions,
    seconds: dict[str, float],
    tracks: dict[str, TrackResult],
) -> None:
    settings = dataclasses.asdict(dataclasses.replace(options, requests=None))
    del settings["checkpoints"], settings["report_to"]  # they change nothing in the result
    given = (options.requests or {}).items()
    settings.update(
        requests={name if isinstance(name, str) else type(name).__name__: weight for name, weight in given} or None,
        data=printable(str(options.data)),  # names only: a file to share tells no paths of this machine
        output=printable(options.output.name),
        checkpoint=None if options.checkpoint is None else printable(options.checkpoint.name),
        backbone=backbone.name,
        generator=dataclasses.asdict(generator),
    )
    values = {"options": settings, "versions": versions(), "seconds": seconds, "validation": tracks_as_dict(tracks)}
    write_json(folder / TRAINING_FILE, values)
