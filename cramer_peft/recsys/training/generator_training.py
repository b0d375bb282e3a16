"""Training of an adapter's generator on histories with requests, by ``transformers.Trainer``."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskModel
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones.sampling import negatives_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.catalogue_digest import check_count
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.devices import device_of
from cramer_peft.recsys.masks import item_layers
from cramer_peft.recsys.requests.sources import Weights
from cramer_peft.recsys.training.backbone_training import quiet_arguments
from cramer_peft.recsys.training.reports import ReportTo, train_and_report
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator, request_source
from cramer_peft.training import (
    Checkpoints,
    Processes,
    ResumableTrainer,
    SparsityLoss,
    TemperatureCallback,
    minimal_edit_loss,
)

TUNED_RATE = 0.01  # of the generator's learning rate: a tuned encoder knows its language already
GAIN_RATE = 20.0  # two numbers carry most of what a request does, and would else be the last to be learnt
EXPANDED_POSITIONS = 2  # fewer, because each position costs a row of its own there


def generator_options(backbone: Any) -> GeneratorOptions:
    """Return the default options of a generator's training for a backbone."""
    expands = getattr(backbone, "expands_positions", False)
    return GeneratorOptions(positions=EXPANDED_POSITIONS) if expands else GeneratorOptions()


def check_options(options: GeneratorOptions, config: RequestMaskConfig, catalogue: Catalogue) -> None:
    """Raise a ConfigError if a generator's options do not fit the configuration of its masks or the catalogue."""
    if options.sparsity_weight and config.gate != "topk":
        raise ConfigError(
            f"sparsity_weight={options.sparsity_weight} is for gate='topk', but gate is {config.gate!r}: leave it at 0 "
            "or change the gate."
        )
    unknown = sorted(set(options.attributes or ()) - set(catalogue.attributes))
    if unknown:
        raise ConfigError(f"attributes: {unknown} are not in the catalogue, which has {catalogue.attributes}.")


class GeneratorTrainer(ResumableTrainer):
    """Trains the generator of a ``RequestMaskModel`` towards the smallest edit that satisfies each request."""

    def __init__(self, *args: Any, options: GeneratorOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = options

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the loss of one batch of :class:`~cramer_peft.recsys.training.request_batches.RequestCollator`."""
        masks: RequestMaskModel = self.accelerator.unwrap_model(model)
        masks.model.eval()  # the frozen backbone's dropout would only add noise
        masks.model.training = True  # but the form topk draws its noise in training mode only
        share = self.share_of(inputs)
        with self.own_noise():
            state = masks.mask_state(inputs["texts"] if "texts" in inputs else inputs["vectors"])
            scores, frozen = self._scores(model, masks, inputs, state)
        edited = inputs["known"] & inputs["edits"][:, None] if "edits" in inputs else inputs["known"]
        next_item, edit, sparse = self.scales(share, inputs["fits"].sum(), edited.sum(), len(scores))
        loss = scores.sum() * 0  # a process's share of a small batch may have no term of any loss
        if self._options.next_item_weight and bool(inputs["fits"].any()):
            fits = inputs["fits"]
            entropy = functional.cross_entropy(scores[fits], inputs["targets"][fits])
            loss = loss + self._options.next_item_weight * next_item * entropy
        if frozen is not None and self._options.edit_weight and bool(edited.any()):
            match = inputs["match"][:, None].expand_as(frozen)[edited]
            loss_of_edits = minimal_edit_loss(
                scores[edited], frozen[edited], match, self._options.kappa, self._options.floor
            )
            loss = loss + self._options.edit_weight * edit * loss_of_edits
        if self._options.sparsity_weight:
            drop_ratio = masks.adapter().config.drop_ratio
            assert drop_ratio is not None  # the form topk, the only one with this loss, sets it
            loss = loss + self._options.sparsity_weight * sparse * SparsityLoss(drop_ratio)(state)
        return (loss, {"scores": scores}) if return_outputs else loss

    def _scores(
        self, model: torch.nn.Module, masks: RequestMaskModel, inputs: dict[str, Tensor], state: MaskState
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scores under the requests, (rows, positions, items), and without if the loss needs them."""
        layout = masks.adapter().config.masked_modules or {}
        # Of several processes the wrapper must be called.
        alone = list(layout) == [":forward"] and self.processes.count == 1
        frozen = None
        if alone or self._options.edit_weight:
            with torch.no_grad():
                frozen = _scores(masks, inputs, None)
        if alone:
            with masks.request(state):
                scores: Tensor = masks.mask_output(frozen, candidates=inputs.get("items"))
        else:
            scores = _scores(model, inputs, state)
        added = inputs.get("added", 0.0)
        return scores + added, None if frozen is None else frozen + added

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the optimiser, with other learning rates for a tuned encoder and for the gains of row values."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        masks: RequestMaskModel = self.accelerator.unwrap_model(self.model)
        gains = [value for name, value in masks.generator.named_parameters() if name.endswith("gains")]
        parts = {TUNED_RATE: [*masks.request_mask_encoder.parameters()], GAIN_RATE: gains}
        for rate, parameters in parts.items():
            chosen = {id(parameter) for parameter in parameters}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if id(parameter) in chosen]
                if own:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
                    optimizer.add_param_group({**group, "params": own, "lr": rate * group["lr"]})
        return optimizer


def _scores(model: torch.nn.Module, inputs: dict[str, Tensor], request: MaskState | None) -> Tensor:
    """Return the scores at a batch's positions, (rows, positions, items), of all items or of the sampled ones."""
    some = {"items": inputs["items"]} if "items" in inputs else {}
    scores: Tensor = model(inputs["item_ids"], positions=inputs["positions"], request=request, **some)
    return scores


def train_generator(
    masks: RequestMaskModel,
    catalogue: Catalogue,
    split: Split,
    options: GeneratorOptions | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoints: Checkpoints | None = None,
    negatives: int | None = None,
    requests: Weights | None = None,
    stated: Iterable[tuple[Sequence[int] | Tensor, str, int]] = (),
    report_to: ReportTo = "none",
) -> None:
    """Train the active adapter's generator, and what it tunes of the encoder, as :func:`train_backbone` trains.

    Args:
        masks: The adapted backbone.
        catalogue: The items and their attributes.
        split: Histories; neither the validation nor the test targets are used.
        options: Options of the training.
        seed: Seed of the order, the requests and the noise.
        progress: Show a progress bar.
        checkpoints: Folder for states, to resume after a kill; None: no checkpoints.
        negatives: Train on a step's next items and a sample of the others of this size (see
            :func:`generator_negatives`). None: 512 from 20,000 items on if possible, else all items.
        requests: The weight of each source of requests: "stated", "attributes", "catalogue", "history", or an object
            with a method ``draw``, as a ``SaidSource``. None: "stated" and "attributes" alike, or what there is.
        stated: The requests of training visits that the data states, as ``OwnData.said()`` gives them.
        report_to: As for :func:`~cramer_peft.recsys.train_backbone`.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If the options do not fit the adapter, the catalogue or the checkpoints.
        DataError: If the catalogue is not that of the backbone or of the split, or a source has no request.
    """
    options = options or GeneratorOptions()
    check_options(options, masks.adapter().config, catalogue)
    check_count(masks.model, catalogue, split.train)
    sampled = generator_negatives(masks, negatives)
    source = request_source(masks, catalogue, options, requests, stated)
    settings = {**asdict(options), "seed": seed, "negatives": sampled, **source.settings()}
    device = device_of(masks.generator)
    windows = HistoryWindows(split.train, int(masks.model.max_length))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        arguments = generator_arguments(folder, options, seed, progress, report_to)
        if checkpoints is not None:
            arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, checkpoints.every
        processes = Processes(arguments.process_index, arguments.world_size)
        trainer = GeneratorTrainer(
            model=masks,
            args=arguments,
            train_dataset=windows,
            data_collator=RequestCollator(masks, catalogue, options, seed, processes, sampled, source),
            callbacks=[TemperatureCallback(masks)],
            options=options,
            checkpoints=checkpoints,
            settings={**settings, "data": windows.fingerprint(), "adapter": _adapter(masks)},
        )
        train_and_report(trainer)
    masks.to(device).eval()  # the Trainer moves it to an accelerator, if there is one


def generator_negatives(masks: RequestMaskModel, negatives: int | None) -> int | None:
    """Return the number of negatives of a generator's training; None: all items."""
    model = masks.model
    obstacle = None
    if "items" not in inspect.signature(type(model).forward).parameters:
        obstacle = f"{type(model).__name__}, which cannot score some items alone (SASRec and GRU4Rec can)"
    else:
        scoring = [name for name in item_layers(masks) if ":" not in name]  # an output's gates follow its candidates
        if scoring:
            obstacle = f"masks of {scoring[0]!r}, which masks each item's score: leave it out of target_modules"
    if negatives is None:
        return None if obstacle else negatives_for(int(model.num_items))  # type: ignore[arg-type]
    if negatives < 1 or obstacle:
        raise ConfigError(
            f"negatives: found {negatives!r} for {obstacle or type(model).__name__}; expected a positive number and "
            "a backbone whose items can be scored alone. None trains on all items where that cannot be done."
        )
    return negatives


def _adapter(masks: RequestMaskModel) -> dict[str, Any]:
    """Return what must be the same in an adapter when its training is resumed."""
    config = masks.adapter().config
    return {name: getattr(config, name) for name in ("gate", "base_fingerprint", "encoder", "encoder_fingerprint")}


def generator_arguments(
    folder: str, options: GeneratorOptions, seed: int, progress: bool, report_to: ReportTo = "none"
) -> TrainingArguments:
    """Return the arguments of a generator's training: AdamW, warm-up and a cosine; nothing is saved."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, options.steps // 10),
        per_device_train_batch_size=options.batch_size,
        dataloader_drop_last=False,
        save_strategy="no",
        **quiet_arguments(seed, progress, report_to, "generator"),
    )
