"""Trains a backbone on histories, and a generator on histories with requests, by ``transformers.Trainer``."""

from __future__ import annotations

import hashlib
import inspect
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, default_collate
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from cramer_peft import RequestMaskModel
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.backbones.backbone import without_constant_bias
from cramer_peft.recsys.backbones.draws import shared_draws
from cramer_peft.recsys.backbones.sampling import DEFAULT_NEGATIVES, negatives_for, with_negatives
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split, pad_histories, seen_mask
from cramer_peft.recsys.evaluation.metrics import ndcg, target_ranks
from cramer_peft.recsys.requests.attributes import AttributeRequest, RequestGenerator, match_scores, satisfied_by
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator, concept_match
from cramer_peft.recsys.requests.text_encoders import without_cache
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.state import MaskState
from cramer_peft.training import Checkpoints, SparsityLoss, TemperatureCallback, minimal_edit_loss
from cramer_peft.training.processes import SHARE, Processes
from cramer_peft.training.trainer import ResumableTrainer

NO_LABEL = -100
_SCORING_BATCH = 256


class HistoryWindows(Dataset[dict[str, Tensor]]):
    """Windows of histories with the next item at each position, for causal training.

    Args:
        histories: Per user an int64 tensor of item indices from 0, in time's order.
        length: Longest window. Longer histories give several, aligned to their ends.

    Raises:
        DataError: If no history has two items.
    """

    def __init__(self, histories: Sequence[Tensor], length: int) -> None:
        pieces = [
            history[max(0, end - length - 1) : end] for history in histories for end in range(len(history), 1, -length)
        ]
        if not pieces:
            raise DataError("no history has two items: there is nothing to train on.")
        self.item_ids = pad_histories([piece[:-1] for piece in pieces], length)
        self.labels = torch.where(
            self.item_ids > 0, pad_histories([piece[1:] for piece in pieces], length) - 1, NO_LABEL
        )

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"item_ids": self.item_ids[index], "labels": self.labels[index]}

    def fingerprint(self) -> str:
        """A hash of all windows, to tell whether a checkpoint is of the same data."""
        digest = hashlib.sha256()
        for tensor in (self.item_ids, self.labels):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


@torch.no_grad()
def score_histories(model: torch.nn.Module, item_ids: Tensor) -> Tensor:
    """Scores of the whole catalogue after each history, (rows, items), in batches and in eval mode."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(batch) for batch in item_ids.split(_SCORING_BATCH)])
    finally:
        model.train(training)


class _BackboneTrainer(ResumableTrainer):
    """Validates by NDCG@10 on the next item, the whole catalogue ranked, seen items removed."""

    def __init__(self, *args: Any, split: Split, **kwargs: Any) -> None:
        # Trainer wants a data set to validate on; evaluate() below ranks the split's users instead.
        super().__init__(*args, eval_dataset=kwargs["train_dataset"], **kwargs)
        self._histories = split.history("validation")
        self._item_ids = pad_histories(self._histories, self.model.max_length)
        self._targets = split.validation_target

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The backbone's own loss, over the batch of all processes."""
        share = self.share_of(inputs)
        with self.own_noise() as generator, shared_draws(generator, share):
            outputs = model(**inputs)
        terms = outputs["terms"] if "terms" in outputs else (inputs["labels"] >= 0).sum()
        (scale,) = self.scales(share, terms)
        loss = outputs["loss"] * scale
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Rank the validation users, each process its share of the batches; all get the same figures."""
        ranks = torch.zeros_like(self._targets)
        for start in range(0, len(ranks), _SCORING_BATCH)[self.processes.index :: self.processes.count]:
            users = slice(start, start + _SCORING_BATCH)
            ranks[users] = self._ranks(users)
        if self.processes.count > 1:
            ranks = self.accelerator.reduce(ranks.to(self.args.device), "sum").cpu()
        metrics = {"eval_ndcg@10": float(ndcg(ranks).mean())}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # early stopping listens
        return metrics

    def _ranks(self, users: slice) -> Tensor:
        """Ranks of some users' targets: one batch's scores are all that is kept at a time."""
        seen = seen_mask(self._histories[users], self.model.num_items)
        scores = score_histories(self.model, self._item_ids[users].to(self.args.device)).cpu()
        return target_ranks(scores.masked_fill(seen, -torch.inf), self._targets[users])


@dataclass(frozen=True)
class BackboneOptions:
    """How a backbone is trained.

    Attributes:
        epochs: Most epochs; training stops when validation has not improved for ``patience`` of them.
        learning_rate: Peak of AdamW's learning rate.
        batch_size: Windows per step.
        patience: Epochs without a better validation NDCG@10.
        dropout: Of the backbone.
        max_length: Longest history, in items.
        loss: ``"softmax"``: cross-entropy, on a sample of a large catalogue (:func:`fit_backbone`). ``"gbce"``:
            :func:`~cramer_peft.recsys.backbones.sampling.gbce`, on a sample at every size (SASRec and GRU4Rec).
        calibration: Of ``"gbce"``, from 0 to 1; the default is that of its paper.
    """

    epochs: int = 30
    learning_rate: float = 2e-3
    batch_size: int = 64
    patience: int = 5
    dropout: float = 0.2
    max_length: int = 50
    loss: Literal["softmax", "gbce"] = "softmax"
    calibration: float = 0.75


def train_sasrec(
    catalogue: Catalogue, split: Split, options: BackboneOptions | None = None, seed: int = 0, progress: bool = True
) -> SASRec:
    """Train SASRec on the training items of a split; the epoch that validates best is returned.

    The loss is cross-entropy at every position, over the whole catalogue unless that is large (:func:`fit_backbone`)
    or ``options`` name another.

    Args:
        catalogue: The items.
        split: Histories and validation targets; the test targets are not looked at.
        options: How to train.
        seed: Of initialisation, order and dropout.
        progress: Whether to show a progress bar.
    """
    options = options or BackboneOptions()
    torch.manual_seed(seed)
    model = SASRec(SASRec.configure(len(catalogue), options.max_length, options.dropout))
    fit_backbone(model, split, options, seed, progress)
    return model


def fit_backbone(
    model: torch.nn.Module,
    split: Split,
    options: BackboneOptions,
    seed: int = 0,
    progress: bool = True,
    negatives: int | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train a backbone by its own loss on the training items of a split, and keep the epoch that validates best.

    Under ``accelerate launch`` all processes train one backbone, each on its rows of every batch, and all get it.

    Args:
        model: It has ``max_length`` and ``num_items``; given ``item_ids`` and ``labels`` it returns ``{"loss": …}``,
            the mean over the known labels or, where it is over others, over ``terms`` of them, an entry too. Given
            ``item_ids`` alone it returns the scores of all items. It is left on the CPU and in eval mode.
        split: Histories and validation targets; the test targets are not looked at.
        options: How to train.
        seed: Of order and dropout.
        progress: Whether to show a progress bar.
        negatives: Train on samples of the catalogue of this size instead of all of it (SASRec and GRU4Rec). None:
            512 from 20,000 items on, in the backbones that can; below that, and in the others, all items. A loss
            ``"gbce"`` takes 512 at every size.
        checkpoints: Where each epoch's state is kept, to go on from after a kill; None: nowhere.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If ``negatives`` is not positive, or given to a model that has no attribute of that name, or
            the loss is unknown or one that the model cannot be trained by, or there are checkpoints that are not to be
            resumed, or of other settings.
    """
    _set_loss(model, options, negatives)
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
            restore_callback_states_from_checkpoint=True,  # early stopping counts
            **_quiet(seed, progress),
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
        with without_constant_bias(model):
            trainer.train_or_resume()
    for name in ("negatives", "calibration"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.cpu().eval()


def _set_loss(model: Any, options: BackboneOptions, negatives: int | None) -> None:
    """Set which items the model's loss is over, and which loss it is."""
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


@dataclass(frozen=True)
class GeneratorOptions:
    """How a generator is trained.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Peak of AdamW's learning rate, after 50 warm-up steps, then a cosine to 0.
        batch_size: Histories per step, each with its own request.
        positions: Positions of each history that the losses look at.
        random_share: Share of requests that know nothing of the history or of what comes next.
        empty_share: Share of requests that ask nothing. The rest are true of an item that comes next.
        edit_weight: Weight of the minimal-edit loss, at all positions looked at.
        next_item_weight: Weight of the next item's cross-entropy, where it satisfies a true request.
        kappa: Of the minimal-edit loss.
        floor: Of the minimal-edit loss; None leaves its rows on their own scales.
        sparsity_weight: Weight of the paper's sparsity loss (``topk`` gates only).
        attributes: The attributes that requests may name, such as those not held out for a test; None: all.
        concept_share: Share of requests, of all kinds, whose place a made-up set of items takes, so that a generator
            learns to steer anywhere. Only a ``CatalogueEncoder`` has vectors for them; with others it counts as 0.
        concept_until: Share of the steps, from the first, that have such sets; the rest have requests alone.
        against_by_frequency: Whether what a request of those that know nothing asks against is drawn as often as items
            have it. False: all attributes alike, of which most ask against what is hardly there.
    """

    steps: int = 1500
    learning_rate: float = 3e-3
    batch_size: int = 64
    positions: int = 8
    random_share: float = 0.4
    empty_share: float = 0.2
    edit_weight: float = 1.0
    next_item_weight: float = 0.1
    kappa: float = 12.0
    floor: float | None = None
    sparsity_weight: float = 0.0
    attributes: tuple[str, ...] | None = None
    concept_share: float = 0.8
    concept_until: float = 0.4
    against_by_frequency: bool = True

    @classmethod
    def paper(cls, **overrides: Any) -> GeneratorOptions:
        """The paper's training: true requests only, next-item loss and sparsity loss (weight 0.3)."""
        settings = {"random_share": 0.0, "empty_share": 0.0, "edit_weight": 0.0, "next_item_weight": 1.0}
        return cls(**{**settings, "sparsity_weight": 0.3, "concept_share": 0.0, **overrides})


class RequestCollator:
    """Gives each window of a batch a request, and the positions at which the losses look.

    Positions whose next item satisfies the request come first, for the next-item loss; others fill up.

    Args:
        masks: The adapted backbone, for its encoder.
        catalogue: The items and their attributes.
        options: Shares and number of positions.
        seed: Of the requests and positions. Those of a batch depend on this and on how many came before it.
        processes: Who shares the batches: a process gives its own rows of each, drawn as for the whole batch.
        negatives: Match the next items at the positions of the batch and so many others alone; None: all items.
    """

    def __init__(
        self,
        masks: RequestMaskModel,
        catalogue: Catalogue,
        options: GeneratorOptions,
        seed: int,
        processes: Processes | None = None,
        negatives: int | None = None,
    ) -> None:
        self._masks = masks
        self._catalogue = catalogue
        self._options = options
        allowed = catalogue.attributes if options.attributes is None else options.attributes
        unknown = [name for name in allowed if name not in catalogue.attributes]
        if unknown:
            raise ConfigError(f"attributes: {unknown} are not in the catalogue, which has {catalogue.attributes}.")
        having = dict(zip(catalogue.attributes, catalogue.item_attributes.sum(0).tolist(), strict=True))
        # one more, as a weight must be positive
        weights = [1.0 + having[name] for name in allowed] if options.against_by_frequency else None
        self._requests = RequestGenerator(allowed, TRAIN_TEMPLATES, weights)
        names = (catalogue.attribute_names(index) for index in range(len(catalogue)))
        self._names = [tuple(name for name in own if name in allowed) for own in names]
        self._seed, self._batches = seed, 0
        self._processes = Processes() if processes is None else processes
        self._negatives = negatives
        self._random, self._generator = random.Random(), torch.Generator()
        self._encoder = _catalogue_encoder(masks)
        features = None if self._encoder is None else self._encoder.features
        self._concepts = None if features is None else ConceptGenerator(features, self._random, self._generator)

    def start_at(self, batches: int) -> None:
        """Give next the batch that comes after so many."""
        self._batches = batches

    def __call__(self, windows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch of R rows, P positions and I items.

        ``item_ids`` (R, length), ``vectors`` (R, request_dim), ``positions`` and ``targets`` (R, P) int64,
        ``known`` (R, P) bool: there is a next item; ``fits`` (R, P) bool: it satisfies a true request;
        ``match`` (R, I), whose columns the targets are. Where several processes share it, R are this one's rows, and
        ``share`` says which. Of a sample, ``items`` (I,) int64 and ``added`` (I,), what to add to their scores.
        """
        labels = torch.stack([window["labels"] for window in windows])
        requests, concepts, noise = self._draw(labels)
        known = labels >= 0
        fits = self._fits(requests, concepts, labels.clamp(min=0)) & known
        positions = (noise + known + fits).topk(min(self._options.positions, known.shape[1]), dim=1).indices
        looked_at = {"positions": positions, "known": known.gather(1, positions), "fits": fits.gather(1, positions)}
        looked_at["targets"], sample = self._sample(labels.gather(1, positions))
        share = self._processes.share(len(windows))
        vectors, match = self._wishes(requests[share.rows], concepts[share.rows], sample.get("items"))
        batch = {
            "item_ids": torch.stack([window["item_ids"] for window in windows[share.rows]]),
            "vectors": vectors,
            "match": match,
            **{name: value[share.rows] for name, value in looked_at.items()},
            **sample,
        }
        return batch if self._processes.count == 1 else {**batch, SHARE: share.as_tensor()}

    def _sample(self, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The columns of a batch's next items, (rows, positions), among the items that it looks at, and these."""
        if self._negatives is None:
            return targets, {}
        known = targets >= 0
        items, added = with_negatives(targets[known], len(self._catalogue), self._negatives, self._random)
        columns = torch.full_like(targets, NO_LABEL)
        columns[known] = targets[known].unique(return_inverse=True)[1]  # they come first, in this order
        return columns, {"items": items, "added": added}

    def _draw(self, labels: Tensor) -> tuple[list[tuple[AttributeRequest, bool]], list[Concept | None], Tensor]:
        """All that is random in the next batch: each row's request, and whether it is true; a concept; the positions.

        It is the same for every process that shares the batch, and in a training that was resumed before it.
        """
        self._random.seed(f"{self._seed} {self._batches}")
        self._generator.manual_seed(self._random.getrandbits(63))
        early = self._batches < self._options.concept_until * self._options.steps
        concept_share = self._options.concept_share if early else 0.0
        self._batches += 1
        known = labels >= 0
        items = [row.tolist() for row in labels[known].split(known.sum(1).tolist())]
        requests = [self._request(row) for row in items]
        noise = torch.rand(labels.shape, generator=self._generator)
        if self._concepts is None:
            return requests, [None] * len(requests), noise
        chosen = [self._random.random() < concept_share for _ in requests]
        return requests, [self._concepts() if own else None for own in chosen], noise

    def _fits(
        self, requests: Sequence[tuple[AttributeRequest, bool]], concepts: Sequence[Concept | None], items: Tensor
    ) -> Tensor:
        """Which of each row's items, (rows, n), satisfy its request, or the concept in its place, if it may be true."""
        asked, truthful = [request for request, _ in requests], torch.tensor([true for _, true in requests])
        fits = satisfied_by(asked, self._catalogue.attributes, self._catalogue.item_attributes, items)
        fits &= truthful[:, None]
        for row, concept in enumerate(concepts):
            if concept is not None:
                never = concept.wanted is None or concept.unwanted is not None
                fits[row] = False if never else concept.wanted[items[row]]  # type: ignore[index]
        return fits

    def _wishes(
        self,
        requests: Sequence[tuple[AttributeRequest, bool]],
        concepts: Sequence[Concept | None],
        items: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Each row's vector, and how well each item, or each of ``items``, matches it.

        Concepts take the place of requests, which are not read then.
        """
        flags = self._catalogue.item_attributes if items is None else self._catalogue.item_attributes[items]
        plain = [row for row, concept in enumerate(concepts) if concept is None]
        asked = [requests[row][0] for row in plain]
        read = self._masks.encode([request.text for request in asked])
        vectors, match = read.new_empty(len(requests), read.shape[1]), torch.empty(len(requests), len(flags))
        vectors[plain], match[plain] = read, match_scores(asked, self._catalogue.attributes, flags)
        for row, concept in enumerate(concepts):
            if concept is not None and self._encoder is not None:
                vectors[row] = self._encoder.concept(concept.wanted, concept.unwanted)
                match[row] = concept_match([concept.among(items)], len(flags))[0]
        return vectors, match

    def _request(self, known: Sequence[int]) -> tuple[AttributeRequest, bool]:
        """A request for one window, and whether it is true of one of its next items."""
        draw = self._random.random()
        if draw < self._options.empty_share:
            return self._requests.empty(self._random), False
        if draw < self._options.empty_share + self._options.random_share:
            return self._requests.counterfactual(self._random), False
        target = known[self._random.randrange(len(known))]
        return self._requests.truthful(self._names[target], self._random), True


def _catalogue_encoder(masks: Any) -> CatalogueEncoder | None:
    """The encoder of an adapted backbone, or a bare encoder, if it knows the catalogue."""
    encoder = without_cache(masks.encoder() if isinstance(masks, RequestMaskModel) else masks)
    return encoder if isinstance(encoder, CatalogueEncoder) else None


class GeneratorTrainer(ResumableTrainer):
    """Trains an adapter's generator towards the smallest edit that satisfies each request.

    Args:
        options: Weights of the losses.
        **kwargs: Those of :class:`~cramer_peft.training.trainer.ResumableTrainer`; ``model`` is a
            :class:`RequestMaskModel` around a backbone that takes ``item_ids`` and ``positions``.
    """

    def __init__(self, *args: Any, options: GeneratorOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options = options

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The loss of one batch of :class:`RequestCollator`."""
        masks: RequestMaskModel = self.accelerator.unwrap_model(model)
        masks.model.eval()  # the frozen backbone's dropout would only add noise
        masks.model.training = True  # and yet the topk gate draws its noise in training
        share = self.share_of(inputs)
        with self.own_noise():
            state = masks.mask_state(inputs["vectors"])
            scores = _scores(model, inputs, state)
        next_item, edit, sparse = self.scales(share, inputs["fits"].sum(), inputs["known"].sum(), len(scores))
        loss = scores.sum() * 0  # where no part has a term, as in a process's share of a small batch
        if self._options.next_item_weight and bool(inputs["fits"].any()):
            fits = inputs["fits"]
            entropy = functional.cross_entropy(scores[fits], inputs["targets"][fits])
            loss = loss + self._options.next_item_weight * next_item * entropy
        if self._options.edit_weight:
            loss = loss + self._options.edit_weight * edit * self._edit_loss(masks, inputs, scores)
        if self._options.sparsity_weight:
            drop_ratio = masks.peft_config[masks.active_adapters[0]].drop_ratio
            assert drop_ratio is not None  # set by the only gate that this loss is for
            loss = loss + self._options.sparsity_weight * sparse * SparsityLoss(drop_ratio)(state)
        return (loss, {"scores": scores}) if return_outputs else loss

    def _edit_loss(self, masks: RequestMaskModel, inputs: dict[str, Tensor], scores: Tensor) -> Tensor:
        known = inputs["known"]
        with torch.no_grad():
            frozen = _scores(masks, inputs, None)
        match = inputs["match"][:, None].expand_as(frozen)
        return minimal_edit_loss(scores[known], frozen[known], match[known], self._options.kappa, self._options.floor)


def _scores(model: torch.nn.Module, inputs: dict[str, Tensor], request: MaskState | None) -> Tensor:
    """Scores at a batch's positions, (rows, positions, items), of all items or of a sample that stands for them."""
    where = inputs["item_ids"], inputs["positions"]
    if "items" not in inputs:
        scores: Tensor = model(where[0], positions=where[1], request=request)
        return scores
    sampled: Tensor = model(where[0], positions=where[1], items=inputs["items"], request=request)
    return sampled + inputs["added"]


def train_generator(
    masks: RequestMaskModel,
    catalogue: Catalogue,
    split: Split,
    options: GeneratorOptions | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoints: Checkpoints | None = None,
    negatives: int | None = None,
) -> None:
    """Train the active adapter's generator on the training items of a split.

    Requests are made from item attributes with the training wordings. Under ``accelerate launch`` all processes train
    one generator, each on its rows of every batch, and all get it.

    Args:
        masks: The adapted backbone.
        catalogue: The items and their attributes.
        split: Histories; neither the validation nor the test targets are looked at.
        options: How to train.
        seed: Of the order, the requests and the noise.
        progress: Whether to show a progress bar.
        checkpoints: Where states are kept, to go on from after a kill; None: nowhere.
        negatives: Train on the next items of a step and a sample of the others of this size, instead of on all items
            (SASRec and GRU4Rec, without masks of the layer that scores the items). None: 512 from 20,000 items on,
            where it can be done; below that, and elsewhere, all items.

    Raises:
        AdapterFileError: If a checkpoint is unreadable or of another model.
        ConfigError: If the options do not fit the gate or the catalogue, ``negatives`` is not positive or cannot be
            done, or there are checkpoints that are not to be resumed, or of other settings.
    """
    options = options or GeneratorOptions()
    if options.sparsity_weight and masks.generator.gate.name != "topk":
        raise ConfigError(
            f"sparsity_weight={options.sparsity_weight} is for gate='topk', but gate is "
            f"{masks.generator.gate.name!r}: leave it at 0 or change the gate."
        )
    sampled = _generator_negatives(masks, negatives)
    device = masks.generator.head.weight.device
    windows = HistoryWindows(split.train, int(masks.model.max_length))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        arguments = generator_arguments(folder, options, seed, progress)
        if checkpoints is not None:
            arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, checkpoints.every
        processes = Processes(arguments.process_index, arguments.world_size)
        GeneratorTrainer(
            model=masks,
            args=arguments,
            train_dataset=windows,
            data_collator=RequestCollator(masks, catalogue, options, seed, processes, sampled),
            callbacks=[TemperatureCallback(masks)],
            options=options,
            checkpoints=checkpoints,
            settings={
                **asdict(options),
                "seed": seed,
                "negatives": sampled,
                "data": windows.fingerprint(),
                "adapter": _adapter(masks),
            },
        ).train_or_resume()
    masks.to(device).eval()  # the Trainer moves to an accelerator where there is one


def _generator_negatives(masks: RequestMaskModel, negatives: int | None) -> int | None:
    """How many negatives a generator is trained with; None: all items."""
    model = masks.model
    obstacle = None
    if "items" not in inspect.signature(type(model).forward).parameters:
        obstacle = f"{type(model).__name__}, which cannot score some items alone (SASRec and GRU4Rec can)"
    else:
        heads = [f".{name}" for name in getattr(model, "head_targets", [])]
        layout = masks.peft_config[masks.active_adapters[0]].masked_modules or {}
        gated = [name for name in layout if f".{name}".endswith(tuple(heads))]
        if gated:
            obstacle = f"masks of {gated[0]!r}, which gate each item's score: leave it out of target_modules"
    if negatives is None:
        return None if obstacle else negatives_for(int(model.num_items))  # type: ignore[arg-type]
    if negatives < 1 or obstacle:
        raise ConfigError(
            f"negatives: found {negatives!r} for {obstacle or type(model).__name__}; expected a positive number and "
            "a backbone whose items can be scored alone. None trains on all items where that cannot be done."
        )
    return negatives


def _adapter(masks: RequestMaskModel) -> dict[str, Any]:
    """What of an adapter must not change between a checkpoint and the training that goes on from it."""
    config = masks.peft_config[masks.active_adapters[0]]
    return {name: getattr(config, name) for name in ("gate", "base_fingerprint", "encoder", "encoder_fingerprint")}


def generator_arguments(folder: str, options: GeneratorOptions, seed: int, progress: bool) -> TrainingArguments:
    """How generators, and what is compared with them, are trained: AdamW, warm-up and a cosine; nothing is saved."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, options.steps // 10),
        per_device_train_batch_size=options.batch_size,
        dataloader_drop_last=False,
        save_strategy="no",
        **_quiet(seed, progress),
    )


def _quiet(seed: int, progress: bool) -> dict[str, Any]:
    return {
        "use_cpu": not torch.accelerator.is_available(),  # or else accelerate would make no group of CPU processes
        "seed": seed,
        "remove_unused_columns": False,
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": not progress,
        "weight_decay": 0.01,
    }
