"""Trains a recommender that answers requests on a user's own data, and evaluates one that was trained."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.encoders import make_encoder
from cramer_peft.errors import AdapterFileError, ConfigError, DataError
from cramer_peft.recsys.backbones import config_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.own_data import Columns, OwnData, Protocol, load_own_data
from cramer_peft.recsys.data.split import Stage
from cramer_peft.recsys.devices import brought_to, device_of, fastest_device
from cramer_peft.recsys.evaluation.assessment import TrackResult, assess
from cramer_peft.recsys.evaluation.evaluation import Scorer
from cramer_peft.recsys.recommender import (
    ADAPTER,
    BACKBONE,
    CATALOGUE,
    RequestRecommender,
    load_backbone,
    save_backbone,
)
from cramer_peft.recsys.requests.text_encoders import DEFAULT_ENCODER, request_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import EXPANDED_POSITIONS, backbone_options, train_backbone
from cramer_peft.recsys.training.generator_training import GeneratorOptions, train_generator
from cramer_peft.recsys.versions import versions
from cramer_peft.storage import open_regular, parse_json, write_json
from cramer_peft.training import Checkpoints
from cramer_peft.training.processes import Processes

TRAINING_FILE = "training.json"
_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainOptions:
    """What is trained, on what, and how.

    Attributes:
        data: A data set's name or a folder of atomic files.
        output: Folder that the recommender is written to.
        backbone: A key of ``BACKBONES``; None: SASRec, or what ``checkpoint`` holds.
        checkpoint: Folder of a trained backbone, to skip its training.
        protocol: How the data is split.
        columns: What is read of the items.
        config: Fields of :class:`RequestMaskConfig` that are not to be the default.
        epochs: Most epochs of the backbone; None: its own.
        batch_size: Histories in a step of the backbone, and of the generator, on all processes together; None: each
            its own.
        negatives: Items that a step of either training is sampled to, beside the next ones; None: by the size of the
            catalogue.
        generator: How the generator is trained; None: the default, with two positions for each history where the
            backbone counts each as a row.
        seed: Of everything that is random.
        users: Most validation users that are evaluated; None: all.
        progress: Whether to show progress bars.
        checkpoints: Where the state of both trainings is kept, to go on from after a kill; None: nowhere.
    """

    data: str
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
    seed: int = 0
    users: int | None = None
    progress: bool = True
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True)
class Trained:
    """A trained recommender and what validation says of it.

    Attributes:
        recommender: Backbone, masks and catalogue, as saved.
        data: What it was trained on.
        tracks: Results on the validation users, in the wordings of training; empty on all processes but the first.
    """

    recommender: RequestRecommender
    data: OwnData
    tracks: dict[str, TrackResult]


def train_recommender(options: TrainOptions, say: Callable[[str], None] = print) -> Trained:
    """Train a backbone, unless one is given, and a generator of masks for it; save both with the catalogue.

    Under ``accelerate launch`` all processes train both; the first one alone evaluates, writes and says anything.

    Args:
        options: What to train.
        say: Called with a line for each step.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If the backbone or a field of ``config`` is unknown, or there are checkpoints that are not to be
            resumed, or of other settings.
        DataError: If the data or the checkpoint cannot be used.
        DownloadError: If a named data set cannot be fetched.
        EncoderError: If the request encoder is unknown.
    """
    first = Processes.launched().writes
    if not first:
        say = _silent
    config = mask_config(options.config)
    if config.encoder not in (None, DEFAULT_ENCODER):
        make_encoder(config.encoder, config.encoder_options)  # before the training: fail early
    options.output.mkdir(parents=True, exist_ok=True)
    say(f"reading {Path(options.data).name}")
    data = load_own_data(options.data, options.protocol, options.columns)
    say(data.describe())
    start = time.perf_counter()
    backbone = _backbone(options, data, say)
    if first:
        save_backbone(backbone, options.output)
    seconds = {"backbone": time.perf_counter() - start}
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    encoder = request_encoder(options.config.get("encoder"), data.catalogue, backbone, config.encoder_options)
    sampled = None if options.negatives is None else True
    masks = inject_request_masks(backbone, config_for(backbone, config, sampled), encoder=encoder)
    say(f"training the generator ({masks.get_nb_trainable_parameters()[0]:,} parameters)")
    generator = options.generator or generator_options(backbone)
    if options.batch_size is not None:
        generator = dataclasses.replace(generator, batch_size=options.batch_size)
    kept = None if options.checkpoints is None else options.checkpoints.below("generator")
    train_generator(
        masks, data.catalogue, data.split, generator, options.seed, options.progress, kept, options.negatives
    )
    seconds["generator"] = time.perf_counter() - start
    recommender = RequestRecommender(masks, data.catalogue)
    if not first:
        return Trained(recommender, data, {})
    recommender.save(options.output)
    say("evaluating on the validation users")
    tracks = _assess(masks, data, "validation", options.seed, options.users)
    _write_training(options, backbone, generator, seconds, tracks)
    return Trained(recommender, data, tracks)


def evaluate_recommender(
    folder: Path,
    data: str,
    stage: Stage = "test",
    protocol: Protocol | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    users: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, TrackResult]:
    """Evaluate a saved recommender against its frozen backbone.

    On the test users the wordings are such as no generator is trained on; on the validation users they are those of
    training.

    Args:
        folder: What :func:`train_recommender` wrote.
        data: The same data set, by name or folder.
        stage: "test", or "validation".
        protocol: How the data is split; None: as in training.
        columns: What is read of the items; None: as in training.
        seed: Of the requests.
        users: At most so many, drawn at random; None: all.
        say: Called with a line for each step.

    Raises:
        DataError: If the folder or the data cannot be used, the data has another catalogue, or ``protocol`` is not
            the one of training: what was fitted would hold the test's future.
    """
    recommender = RequestRecommender.load(folder)
    root = folder if (folder / CATALOGUE).is_file() else folder.absolute().parent
    trained = _read_training(root)
    used = trained.get("protocol")
    if protocol is not None and used is not None and protocol != used:
        raise DataError(
            f"{root} was trained with the protocol {used!r}, found {protocol!r}: what it was trained on may hold what "
            f"it would be tested on. Leave --protocol out, or train with --protocol {protocol}."
        )
    say(f"reading {Path(data).name}")
    loaded = load_own_data(data, protocol or used or "leave-one-out", columns or _columns(trained, root))
    say(loaded.describe())
    _check_catalogue(root, recommender.catalogue, loaded)
    say(f"evaluating on the {stage} users")
    return _assess(recommender.masks, loaded, stage, seed, users)


def mask_config(values: dict[str, Any]) -> RequestMaskConfig:
    """A configuration from some of its fields.

    Raises:
        ConfigError: If a field is unknown or impossible.
    """
    known = {item.name for item in dataclasses.fields(RequestMaskConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"config: unknown fields {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    return RequestMaskConfig(**values)


def read_mask_settings(path: Path) -> dict[str, Any]:
    """Fields of a configuration from a JSON file.

    Raises:
        DataError: If it is not a JSON file with one object.
    """
    values = _read_json(path)
    if not isinstance(values, dict):
        raise DataError(
            f"{path}: found a JSON {type(values).__name__}, expected an object of RequestMaskConfig fields."
        )
    return values


def generator_options(backbone: Any) -> GeneratorOptions:
    """How a generator is trained for a backbone unless told otherwise."""
    expands = getattr(backbone, "expands_positions", False)
    return GeneratorOptions(positions=EXPANDED_POSITIONS) if expands else GeneratorOptions()


def tracks_as_dict(tracks: dict[str, TrackResult]) -> dict[str, Any]:
    """Results for JSON."""
    return {name: result.as_dict() for name, result in tracks.items()}


def _backbone(options: TrainOptions, data: OwnData, say: Callable[[str], None]) -> Any:
    if options.checkpoint is None:
        name = options.backbone or "sasrec"
        changes = {"epochs": options.epochs, "batch_size": options.batch_size}
        given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
        settings = dataclasses.replace(backbone_options(name), **given)
        say(f"training the backbone, {name}")
        kept = None if options.checkpoints is None else options.checkpoints.below("backbone")
        return train_backbone(
            name, data.catalogue, data.split, settings, options.seed, options.progress, options.negatives, kept
        )
    folder = options.checkpoint / BACKBONE if (options.checkpoint / BACKBONE).is_dir() else options.checkpoint
    say(f"loading the backbone from {folder.name}")
    backbone = load_backbone(folder, data.catalogue)
    if options.backbone not in (None, backbone.name):
        raise ConfigError(f"backbone: found {options.backbone!r}, but {folder} holds {backbone.name!r}. Leave one out.")
    return backbone


def _silent(line: str) -> None:
    """Say nothing: the first process does."""


def _assess(
    masks: RequestMaskModel, data: OwnData, stage: Stage, seed: int, users: int | None
) -> dict[str, TrackResult]:
    templates = TEST_TEMPLATES if stage == "test" else TRAIN_TEMPLATES
    length = int(masks.model.max_length)  # type: ignore[arg-type]
    device = device_of(masks)
    masks.to(fastest_device())
    try:
        frozen: Callable[[Tensor], Tensor] = lambda items: masks(brought_to(masks, items), request=None)  # noqa: E731
        return assess(frozen, _scorer(masks), data, stage, templates, length, seed, users)
    finally:
        masks.to(device)


def _scorer(masks: RequestMaskModel) -> Scorer:
    def score(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores: Tensor = masks(brought_to(masks, item_ids), request=list(requests))
        return scores

    return score


def _write_training(
    options: TrainOptions,
    backbone: Any,
    generator: GeneratorOptions,
    seconds: dict[str, float],
    tracks: dict[str, TrackResult],
) -> None:
    settings = dataclasses.asdict(options)
    del settings["checkpoints"]  # they change nothing of the result
    settings.update(
        data=Path(options.data).name,  # no machine's paths
        output=options.output.name,
        checkpoint=None if options.checkpoint is None else options.checkpoint.name,
        backbone=backbone.name,
        generator=dataclasses.asdict(generator),
    )
    values = {"options": settings, "versions": versions(), "seconds": seconds, "validation": tracks_as_dict(tracks)}
    write_json(options.output / TRAINING_FILE, values)


def _read_training(root: Path) -> dict[str, Any]:
    """The options of a training; empty for a folder that the demo wrote, which splits by leave-one-out."""
    path = root / TRAINING_FILE
    if not path.exists():
        return {"protocol": "leave-one-out"}
    values = _read_json(path)
    options = values.get("options") if isinstance(values, dict) else None
    if not isinstance(options, dict):
        raise DataError(f"{path}: expected the options of a training. Train again, or remove the file.")
    return options


def _columns(trained: dict[str, Any], root: Path) -> Columns:
    given = trained.get("columns", {})
    try:
        return Columns(**given)
    except TypeError as error:
        raise DataError(f"{root / TRAINING_FILE}: columns: {error}. Train again, or remove the file.") from error


def _read_json(path: Path) -> Any:
    try:
        with open_regular(path, "a JSON file", _MAX_JSON_BYTES) as (file, size):
            return parse_json(file.read(size))
    except (AdapterFileError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from error


def _check_catalogue(root: Path, known: Catalogue, data: OwnData) -> None:
    found = data.catalogue
    same = known.item_ids == found.item_ids and known.attributes == found.attributes
    if not same or not torch.equal(known.item_attributes, found.item_attributes):
        raise DataError(
            f"{root / CATALOGUE} has {len(known)} items and {len(known.attributes)} attributes, {data.folder} "
            f"{len(found)} and {len(found.attributes)}, or others: give the data that it was trained on, and the same "
            f"columns; the folder {ADAPTER!r} belongs to that catalogue."
        )
