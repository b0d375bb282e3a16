"""The rankers of a transfer: a generator of another catalogue as it is, beside what the target's own data can give."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark.baselines import FusionRanker, MaskRanker, RankerTask, our_masks
from benchmark.baselines.ranker import frozen_copy
from cramer_peft import RequestMaskConfig, RequestMaskModel, load_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.users import Scorer, mask_scorer
from cramer_peft.recsys.masks import describe_items
from cramer_peft.recsys.requests.catalogue_encoder import TEXT_ENCODER, CatalogueEncoder, without_cache
from cramer_peft.recsys.training.request_batches import GeneratorOptions

ZERO_SHOT, FUSION, LITTLE, FULL = "zero-shot", "text fusion", "little training", "full training"


def carry_masks(masks: RequestMaskModel, target: Any, catalogue: Catalogue) -> RequestMaskModel:
    """Put a source's adapter on another backbone, by way of its files; nothing is trained.

    Args:
        masks: The source's backbone with its adapter.
        target: A backbone that was trained on the target, without masks; it is masked in place.
        catalogue: The target's.

    Raises:
        DataError: If the adapter's encoder reads more of the source than texts, or it masks layers inside, whose
            coordinates are another backbone's.
        AdapterFileError, TargetModuleError: As for :func:`~cramer_peft.load_request_masks`.
    """
    own = without_cache(masks.encoder())
    if not isinstance(own, CatalogueEncoder) or own.name != TEXT_ENCODER:
        raise DataError(
            f"the adapter's encoder is {own.name!r}, expected {TEXT_ENCODER!r}: texts alone mean the same in every "
            "catalogue. Train the adapter with it."
        )
    if masks.targeted_module_names:
        raise DataError(
            f"the adapter masks {', '.join(masks.targeted_module_names)}, whose numbers mean something else in another "
            "backbone. Train it with the default masks, which add to the scores."
        )
    with tempfile.TemporaryDirectory() as folder:
        masks.save_pretrained(Path(folder))
        encoder = CatalogueEncoder(catalogue, None, own.reader)
        carried = load_request_masks(target, Path(folder), encoder=encoder, check_base=False)
    describe_items(carried, catalogue, check=False)
    return carried


@dataclass(frozen=True)
class TransferOptions:
    """The generators that are trained on the target, to compare.

    Attributes:
        config: Configuration of their masks; their encoder is the task's.
        little: Share of the task's steps that counts as little training.
        full: Whether to train one with all steps, too.
    """

    config: RequestMaskConfig
    little: float = 0.1
    full: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.little <= 1:
            raise DataError(f"little: found {self.little}, expected a share above 0, at most 1.")

    def budgets(self, options: GeneratorOptions) -> dict[str, GeneratorOptions]:
        """Return the options of each training on the target, by the name of its generator."""
        few = replace(options, steps=max(1, round(self.little * options.steps)))
        return {LITTLE: few, **({FULL: options} if self.full else {})}


def transfer_rankers(masks: RequestMaskModel, task: RankerTask, options: TransferOptions) -> Mapping[str, Scorer]:
    """Return scorers of the target's catalogue, each on a copy of the target's backbone.

    Args:
        masks: The source's backbone with its adapter.
        task: The target's backbone, catalogue and split, and what the generators that are trained there learn by.
        options: These generators.

    Returns:
        "zero-shot": the source's adapter. "text fusion": its weight is tuned on the target's validation users. "little
        training": a generator trained on the target for a few steps. "full training", if requested: for all of them.

    Raises:
        DataError: As for :func:`carry_masks`.
    """
    carried = carry_masks(masks, frozen_copy(task.backbone), task.catalogue)
    fusion = FusionRanker()
    fusion.fit(task)
    scorers: dict[str, Scorer] = {ZERO_SHOT: mask_scorer(carried, 1.0), FUSION: fusion.scores}
    for name, budget in options.budgets(task.options).items():
        trained: MaskRanker = our_masks(options.config)
        trained.fit(replace(task, options=budget))
        assert trained.masks is not None
        scorers[name] = mask_scorer(trained.masks, 1.0)
    return scorers
