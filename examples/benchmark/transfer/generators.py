"""Generators of different origin on the target's backbone: the source's, one trained on, one from scratch."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmark.transfer.alignment import ItemAlignment, align_items
from benchmark.transfer.target_backbone import adapt_backbone
from cramer_peft import RequestMaskModel, inject_request_masks, load_request_masks
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, item_embeddings, text_encoder, without_cache
from cramer_peft.recsys.training.backbone_training import BackboneOptions
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions


def carry_masks(
    masks: RequestMaskModel, target: SASRec, encoder: RequestEncoder | None = None, is_trainable: bool = False
) -> RequestMaskModel:
    """Put a source's adapter on a target's backbone, by way of its files.

    The fingerprint in the files ensures that the masked weights are the same.

    Args:
        masks: The source's backbone with its adapter.
        target: Return value of ``adapt_backbone``, without masks; it is masked in place.
        encoder: The request encoder, if the adapter's is not a registered one; if that reads the source's catalogue,
            the encoder of :func:`target_encoder`.
        is_trainable: Whether the generator can be trained on.

    Raises:
        DataError: If the adapter masks the layer that scores the items, which is another one in each domain.
        BaseModelMismatchError: If the target's masked weights are not the source's.
        AdapterFileError, EncoderError: As for :func:`~cramer_peft.load_request_masks`.
    """
    heads = getattr(masks.model, "head_targets", [])
    masked = [name for name in masks.targeted_module_names if any(f".{name}".endswith(f".{head}") for head in heads)]
    if masked:
        raise DataError(
            f"the adapter masks {', '.join(masked)}, which scores the source's items: the target has others. Train it "
            "with target_modules that leave this layer out."
        )
    with tempfile.TemporaryDirectory() as folder:
        masks.save_pretrained(Path(folder))
        return load_request_masks(target, Path(folder), encoder=encoder, is_trainable=is_trainable)


def target_encoder(masks: RequestMaskModel, target: SASRec, catalogue: Catalogue) -> RequestEncoder | None:
    """Return a new encoder for a carried adapter whose own encoder reads the source's catalogue.

    Both encoders describe their items by the distance from the middle of their own catalogue: a request sets an item
    apart from the other items of the same catalogue.

    Args:
        masks: The source's backbone with its adapter.
        target: Return value of ``adapt_backbone``; its item embeddings describe the items.
        catalogue: The target's.

    Returns:
        None if the adapter's own encoder reads no catalogue and serves as it is.
    """
    own = without_cache(masks.encoder())
    if not isinstance(own, CatalogueEncoder):
        return None
    return CatalogueEncoder(catalogue, item_embeddings(target), own.reader)


@dataclass(frozen=True)
class TransferOptions:
    """The generators that are compared with the source's generator as it is.

    Attributes:
        generator: Training of a generator on the target alone: the full budget.
        little: Share of that budget's steps that counts as little training.
        full: Whether to train one with the full budget, too.
    """

    generator: GeneratorOptions
    little: float = 0.1
    full: bool = False


def transfer_rankers(
    masks: RequestMaskModel,
    target: SASRec,
    catalogue: Catalogue,
    split: Split,
    options: TransferOptions,
    encoder: RequestEncoder | None = None,
    seed: int = 0,
) -> dict[str, RequestMaskModel]:
    """Return the target's backbone under masks of different origin, each on a copy of its own.

    Args:
        masks: The source's backbone with its adapter.
        target: Return value of ``adapt_backbone``, without masks; it is not touched.
        catalogue: The target's.
        split: The target's; validation and test targets are not looked at.
        options: Steps, and the generators to train.
        encoder: The request encoder, if the adapter's is not a registered one; by default :func:`target_encoder`'s.
        seed: Seed of initialisation, order and requests.

    Returns:
        "zero-shot": the source's adapter. "little training": trained on for a few steps on the target. "scratch": as
        many steps without the source. "full training", if requested: all steps without the source.

    Raises:
        DataError: If ``little`` is not between 0 and 1.
        BaseModelMismatchError: As for :func:`carry_masks`.
    """
    if not 0 < options.little <= 1:
        raise DataError(f"little: found {options.little}, expected a share above 0, at most 1.")
    encoder = encoder or target_encoder(masks, target, catalogue)
    few = replace(options.generator, steps=max(1, round(options.little * options.generator.steps)))
    rankers = {"zero-shot": carry_masks(masks, copy.deepcopy(target), encoder)}
    rankers["little training"] = carry_masks(masks, copy.deepcopy(target), encoder, is_trainable=True)
    train_generator(rankers["little training"], catalogue, split, few, seed, progress=False)
    budgets = {"scratch": few, **({"full training": options.generator} if options.full else {})}
    for name, budget in budgets.items():
        torch.manual_seed(seed)
        config = masks.peft_config[masks.active_names()[0]].copy()
        config.inference_mode = False  # a loaded adapter's configuration has it on, which freezes the generator
        rankers[name] = inject_request_masks(copy.deepcopy(target), config, encoder=encoder)
        train_generator(rankers[name], catalogue, split, budget, seed, progress=False)
    return rankers


@dataclass(frozen=True, eq=False)
class PreparedTransfer:
    """A target's backbone, and generators of different origin on copies of it.

    Attributes:
        backbone: The frozen target backbone.
        alignment: The places of its items.
        rankers: Return value of :func:`transfer_rankers`.
    """

    backbone: SASRec
    alignment: ItemAlignment
    rankers: dict[str, RequestMaskModel]

    @property
    def found(self) -> dict[str, Any]:
        """The alignment for JSON: how many items were copied, and how much of the source's variance texts explain."""
        return {
            "copied": int(self.alignment.copied.sum()),
            "explained": self.alignment.explained,
            "features": self.alignment.features,
        }


def prepare_transfer(
    masks: RequestMaskModel,
    source: tuple[SASRec, Catalogue, Split],
    target: tuple[Catalogue, Split],
    options: TransferOptions,
    encoder: RequestEncoder | None = None,
    same_items: bool = True,
    backbone: BackboneOptions | None = None,
    pull: float = 10.0,
    seed: int = 0,
) -> PreparedTransfer:
    """Place the target's items, learn them, carry the generator over, train a little.

    Args:
        masks: The source's backbone with its adapter.
        source: A plain copy of the source's backbone, the source's catalogue and split.
        target: The target's catalogue and split.
        options: The generators to compare, and their training.
        encoder: The request encoder; by default the adapter's own, made anew if it reads the source's catalogue.
        same_items: Whether equal titles are the same item in both data sets.
        backbone: Training of the target's items.
        pull: As for ``adapt_backbone``.
        seed: Seed of everything random.

    Raises:
        DataError: As for the functions that it calls.
    """
    plain, source_catalogue, source_split = source
    catalogue, split = target
    words = text_encoder(encoder or masks.encoder())
    alignment = align_items(plain, source_catalogue, source_split, catalogue, words, same_items)
    adapted = adapt_backbone(plain, alignment, split, backbone, pull, seed)
    return PreparedTransfer(
        adapted, alignment, transfer_rankers(masks, adapted, catalogue, split, options, encoder, seed)
    )
