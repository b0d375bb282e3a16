"""What can be known before a training: everything is made once, on an untrained backbone, and thrown away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cramer_peft import RequestMaskConfig
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.data.own_data import OwnData
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.catalogue_encoder import without_cache
from cramer_peft.recsys.requests.hearing import HearingEncoder, Parts
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.sources import Weights
from cramer_peft.recsys.training.backbone_training import BackboneOptions, set_loss
from cramer_peft.recsys.training.generator_training import check_options, generator_negatives, generator_options
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator, request_source
from cramer_peft.storage import write_problem

_SEEDS = 2**32


def check_output(folder: Path, folders: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Raise a ConfigError if a folder for results cannot be written, or one of the names in it; nothing is made."""
    folder = Path(folder)
    for place in (folder, *(folder / name for name in folders)):
        problem = write_problem(place)
        if problem is not None:
            raise ConfigError(f"output: {place} cannot be written, since {problem}. Give another folder.")
    for name in files:
        if (folder / name).is_dir():
            raise ConfigError(f"output: {folder / name} is a folder, but a file is written there. Give another folder.")


def check_seed(seed: int) -> None:
    """Raise a ConfigError if a seed is none that all generators of random numbers take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEEDS:
        raise ConfigError(f"seed: found {seed!r}, expected a whole number from 0 to {_SEEDS - 1}.")


def check_masks(
    name: str,
    data: OwnData,
    config: RequestMaskConfig,
    encoder: str | None,
    backbone: BackboneOptions,
    generator: GeneratorOptions | None = None,
    negatives: int | None = None,
    requests: Weights | None = None,
) -> Parts | None:
    """Make a backbone, its encoder and masks, and the requests to train on, as the training will, and drop them.

    So what does not fit is refused before the backbone is trained.

    Args:
        name: The backbone's name.
        data: The data set.
        config: The configuration of the masks.
        encoder: The request encoder's name; None: the one that knows the catalogue.
        backbone: Options of the backbone's training.
        generator: Options of the generator's training; None: the default for the backbone.
        negatives: Number of sampled items; None: by the catalogue's size.
        requests: The weight of each source of requests; None: what there is.

    Returns:
        The parts of the encoder that the training need not make again, if there are any.

    Raises:
        ConfigError: If an option is impossible, or does not fit the backbone or the catalogue.
        EncoderError: If the encoder cannot be made, or its vectors do not have the width ``request_dim``.
        MissingExtraError: If a package is not installed.
        TargetModuleError: If the backbone has no such modules, or they cannot be masked.
    """
    with torch.random.fork_rng(devices=[]):
        model = make_backbone(name, len(data.catalogue), max_length=backbone.max_length, dropout=backbone.dropout)
        set_loss(model, backbone, negatives)
        made = request_encoder(encoder, data.catalogue, model, config.encoder_options)
        masks = mask_backbone(model.eval(), data.catalogue, config, made)
        options = generator_options(model) if generator is None else generator
        check_options(options, config, data.catalogue)
        source = request_source(masks, data.catalogue, options, requests, data.said())
        RequestCollator(masks, data.catalogue, options, 0, None, generator_negatives(masks, negatives), source)
        inner = without_cache(made)
        return inner.parts if isinstance(inner, HearingEncoder) else None
