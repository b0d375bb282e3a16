"""Training of a backbone on histories, by ``transformers.Trainer``."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import EarlyStoppingCallback, TrainingArguments

from cramer_peft.errors import ConfigError
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.backbones.draws import shared_draws
from cramer_peft.recsys.backbones.sampling import DEFAULT_NEGATIVES, negatives_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.catalogue_digest import check_count
from cramer_peft.recsys.data.histories import HistoryWindows, pad_histories, seen_mask
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import ndcg, unseen_ranks
from cramer_peft.recsys.evaluation.users import BATCH, score_histories
from cramer_peft.recsys.training.reports import ReportTo, report_arguments, train_and_report
from cramer_peft.training import Checkpoints, Processes, ResumableTrainer


@dataclass(frozen=True)
class BackboneOptions:
    """Options of a backbone's training.

    Attributes:
        epochs: Most epochs; training stops when validation has not improved for ``patience`` of them.
        learning_rate: Peak of AdamW's learning rate.
        batch_size: Windows per step.
        patience: Epochs without a better validation NDCG@10.
        dropout: Dropout of the backbone.
        max_length: Longest history, in items.
        loss: ``"softmax"``: cross-entropy, on a sample of a large catalogue (:func:`fit_backbone`). ``"gbce"``:
            :func:`~cramer_peft.recsys.backbones.sampling.gbce`, on a sample at every size (SASRec and GRU4Rec).
        calibration: Calibration of ``"gbce"``, from 0 to 1; the default is that of its paper.
    """

    epochs: int = 30
    learning_rate: float = 2e-3
    batch_size: int = 64
    patience: int = 5
    dropout: float = 0.2
    max_length: int = 50
    loss: Literal["softmax", "gbce"] = "softmax"
    calibration: float = 0.75


def backbone_options(name: str) -> BackboneOptions:
    """Return the default options of a backbone's training."""
    # BERT4Rec learns from the few items that it hides, so it needs more epochs
    return BackboneOptions(epochs=60, patience=10) if name == "bert4rec" else BackboneOptions()


def train_backbone(
    name: str,
    catalogue: Catalogue,
    split: Split,
    options: BackboneOptions | None = None,
    seed: int = 0,
    progress: bool = True,
    negatives: int | None = None,
    checkpoints: Checkpoints | None = None,
    report_to: ReportTo = "none",
) -> Any:
    """Make and train a backbone on the training items of a split; return the epoch that validates best.

    Under ``accelerate launch`` all processes train one backbone, each on its rows of every batch, and all get it.

    Args:
        name: A key of :data:`~cramer_peft.recsys.backbones.BACKBONES`.
        catalogue: The items.
        split: Histories and validation targets; the test targets are not used.
        options: Options of the training; None: :func:`backbone_options`.
        seed: Seed of initialisation, order, dropout and, in BERT4Rec, of the hidden items.
        progress: Print a line for each epoch, to standard error.
        negatives: Train on samples of the catalogue of this size (SASRec and GRU4Rec). None: 512 from 20,000 items on
            for the backbones that can sample, else all items. The loss ``"gbce"`` takes 512 at every size.
        checkpoints: Folder for each epoch's state, to resume after a kill; None: no checkpoints.
        report_to: "tensorboard", "wandb", "mlflow", another tool that transformers reports to, or several.

    Returns:
        A :class:`~cramer_peft.recsys.backbones.Backbone`, on the CPU, in eval mode and frozen.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If there is no such backbone, or the options do not fit it or the checkpoints.
        DataError: If there is nothing to train on.
        MissingExtraError: If the backbone's package is not installed.
    """
    options = options or backbone_options(name)
    check_count(None, catalogue, split.train)
    torch.manual_seed(seed)
    model = make_backbone(name, len(catalogue), max_length=options.max_length, dropout=options.dropout)
    fit_backbone(model, split, options, seed, progress, negatives, checkpoints, report_to)
    # torch runs a GRU by another kernel if weights need gradients: frozen here, its scores stay bit for bit the same
    # when masks freeze it
    return model.requires_grad_(False)


def fit_backbone(
    model: torch.nn.Module,
    split: Split,
    options: BackboneOptions,
    seed: int = 0,
    progress: bool = True,
    negatives: int | None = None,
    checkpoints: Checkpoints | None = None,
    report_to: ReportTo = "none",
) -> None:
    """Train a backbone by its own loss, and keep the epoch that validates best; it is left on the CPU, in eval mode.

    Arguments and errors are as for :func:`train_backbone`. ``{"loss": …}`` is the model's mean over the known labels,
    or over other terms, whose number is then ``"terms"``.
    """
    set_loss(model, options, negatives)
    windows = HistoryWindows(split.train, options.max_length)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            learning_rate=options.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=options.batch_size,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            restore_callback_states_from_checkpoint=True,  # the count of early stopping
            **quiet_arguments(seed, progress, report_to, "backbone"),
        )
        processes = Processes(arguments.process_index, arguments.world_size)
        trainer = _BackboneTrainer(
            model=model,
            args=arguments,
            train_dataset=windows,
            data_collator=lambda rows: processes.own_rows(default_collate(rows)),
            split=split,
            callbacks=[EarlyStoppingCallback(options.patience)],
            checkpoints=checkpoints,
            settings={**asdict(options), "seed": seed, "negatives": negatives, "data": windows.fingerprint()},
        )
        train_and_report(trainer)
    for name in ("negatives", "calibration"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.cpu().eval()


def set_loss(model: Any, options: BackboneOptions, negatives: int | None) -> None:
    """Set the model's loss, and the sample of items that it is over."""
    calibrated = options.loss == "gbce"
    if options.loss not in ("softmax", "gbce") or not 0 <= options.calibration <= 1:
        raise ConfigError(
            f"loss: found {options.loss!r} with calibration={options.calibration!r}; expected 'softmax' or 'gbce', and "
            "a calibration from 0 to 1."
        )
    if calibrated and not hasattr(model, "calibration"):
        raise ConfigError(
            f"loss: found 'gbce' for {type(model).__name__}, which has no attribute calibration: it is trained by a "
            "loss of its own. Leave loss='softmax', or take SASRec or GRU4Rec."
        )
    if negatives is not None and (negatives < 1 or not hasattr(model, "negatives")):
        raise ConfigError(
            f"negatives: found {negatives!r} for {type(model).__name__}; expected a positive number and a backbone "
            "with an attribute negatives, such as SASRec. None trains on all items where a backbone knows no sample."
        )
    if hasattr(model, "negatives"):
        by_size = DEFAULT_NEGATIVES if calibrated else negatives_for(model.num_items)
        model.negatives = by_size if negatives is None else negatives
    if hasattr(model, "calibration"):
        model.calibration = options.calibration if calibrated else None


class _BackboneTrainer(ResumableTrainer):
    """Validates by NDCG@10 of the next item, with the whole catalogue ranked and seen items removed."""

    def __init__(self, *args: Any, split: Split, **kwargs: Any) -> None:
        # Trainer insists on a data set to validate on; evaluate() below ranks the split's users instead
        super().__init__(*args, eval_dataset=kwargs["train_dataset"], **kwargs)
        self._histories = split.history("validation")
        self._item_ids = pad_histories(self._histories, self.model.max_length)
        self._targets = split.validation_target

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Return the backbone's own loss, over the batch of all processes."""
        share = self.share_of(inputs)
        with self.own_noise() as generator, shared_draws(generator, share):
            outputs = model(**inputs)
        terms = outputs["terms"] if "terms" in outputs else (inputs["labels"] >= 0).sum()
        (scale,) = self.scales(share, terms)
        loss = outputs["loss"] * scale
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Rank the validation users, each process its share of the batches; all processes get the same figures."""
        ranks = torch.zeros_like(self._targets)
        rows = rows_together(self.model.num_items, BATCH)
        for start in range(0, len(ranks), rows)[self.processes.index :: self.processes.count]:
            users = slice(start, start + rows)
            ranks[users] = self._ranks(users)
        if self.processes.count > 1:
            ranks = self.accelerator.reduce(ranks.to(self.args.device), "sum").cpu()
        metrics = {"eval_ndcg@10": float(ndcg(ranks).mean())}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # early stopping listens
        return metrics

    def _ranks(self, users: slice) -> Tensor:
        """Return the ranks of some users' targets; only one batch's scores are kept at a time."""
        seen = seen_mask(self._histories[users], self.model.num_items)
        scores = score_histories(self.model, self._item_ids[users].to(self.args.device)).cpu()
        return unseen_ranks(scores, seen, self._targets[users])


def quiet_arguments(seed: int, progress: bool, report_to: ReportTo = "none", name: str = "") -> dict[str, Any]:
    """Return the ``TrainingArguments`` that every training here shares; reports are under a name."""
    return {
        "use_cpu": not torch.accelerator.is_available(),  # else accelerate makes no group of CPU processes
        "seed": seed,
        "remove_unused_columns": False,
        "disable_tqdm": not progress,
        "weight_decay": 0.01,
        **report_arguments(report_to, name),
    }
