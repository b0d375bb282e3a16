"""Transfer: a generator trained on one domain, used on another, at once and after little training.

A mask lives in the coordinates of a backbone's layers, so it can only be carried to a backbone that shares them.
:func:`adapt_backbone` makes one for the target domain: the source's transformer stays as it is, bit for bit, and only
the items are learned anew. They start where the source would have put them, judged by their attributes and titles, and
are drawn back there, so that a direction that means "horror" among films means it among the target's items too.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmark.redial import mask_scorer
from benchmark.redial_data import TitleIndex
from cramer_peft import RequestMaskModel, inject_request_masks, load_request_masks
from cramer_peft.encoders import CachedEncoder, RequestEncoder
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split, Stage
from cramer_peft.recsys.evaluation.bootstrap import Interval, ratio_interval, resampled_means
from cramer_peft.recsys.evaluation.control import best_share, normalised_gain, retention
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Scorer
from cramer_peft.recsys.evaluation.metrics import expected_share, hit_rate, mrr, ndcg, target_ranks
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, truthful_track
from cramer_peft.recsys.requests.attributes import phrase
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.text_encoders import item_embeddings, text_encoder, without_cache
from cramer_peft.recsys.training.generator_training import (
    BackboneOptions,
    GeneratorOptions,
    fit_backbone,
    train_generator,
)

RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_FEW = 5  # items met this often count half in the regression


@dataclass(frozen=True, eq=False)
class ItemAlignment:
    """Where a source backbone would have put the items of another catalogue.

    Attributes:
        embeddings: (target items, width) float32.
        copied: Which items have the source's own embedding, because they are the same item, (target items,) bool.
        explained: Share of the variance of the source's embeddings that the texts explain, cross-validated; 0 or less:
            the texts say nothing, and what is asked in words can not mean the same in both.
        features: "attributes", or "titles and attributes": what predicts better.
        ridge: Strength of the regression's penalty, chosen by cross-validation.
    """

    embeddings: Tensor
    copied: Tensor
    explained: float
    features: str
    ridge: float


def align_items(
    source: SASRec,
    source_catalogue: Catalogue,
    source_split: Split,
    target_catalogue: Catalogue,
    encoder: RequestEncoder | CachedEncoder,
    same_items: bool = True,
) -> ItemAlignment:
    """Predict item embeddings from texts, by a ridge regression on the source's items.

    Items that few users have met count less in it, since their embeddings are mostly noise.

    Args:
        source: The source's backbone.
        source_catalogue: Its items.
        source_split: For how many users have met each item; validation and test targets are not looked at.
        target_catalogue: Items to place.
        encoder: Encodes titles and attributes.
        same_items: Whether equal titles are the same item, which then keeps the source's embedding: so for films in
            two data sets, not for films and games.

    Raises:
        DataError: If the backbone knows another number of items than the source's catalogue has.
    """
    if source.num_items != len(source_catalogue):
        raise DataError(
            f"the source backbone knows {source.num_items} items, its catalogue has {len(source_catalogue)}."
        )
    known = item_table(source)
    met = torch.bincount(torch.cat(list(source_split.train)), minlength=len(known)).float()
    weights = met / (met + _FEW)
    fits = []
    for name, features in _features(source_catalogue, encoder).items():
        fits += [(_explained(features, known, weights, ridge), name, ridge) for ridge in RIDGES]
    explained, name, ridge = max(fits)
    slopes = _ridge(_features(source_catalogue, encoder)[name], known, weights, ridge)
    embeddings = _features(target_catalogue, encoder)[name] @ slopes
    copied = torch.zeros(len(target_catalogue), dtype=torch.bool)
    if same_items:
        index = TitleIndex(source_catalogue)
        for item, title in enumerate(target_catalogue.titles):
            found = index.find(title)
            if len(found) == 1 and met[found[0]] >= 1:
                embeddings[item], copied[item] = known[found[0]], True
    return ItemAlignment(embeddings, copied, explained, name, ridge)


def item_table(backbone: SASRec) -> Tensor:
    """A copy of the item embeddings on the CPU, (items, width), without that of the padding."""
    weight: Tensor = backbone.bert.embeddings.word_embeddings.weight
    items: Tensor = weight[1:].detach().to("cpu", copy=True)
    return items


def _features(catalogue: Catalogue, encoder: RequestEncoder | CachedEncoder) -> dict[str, Tensor]:
    """Text vectors of length 1 or, where an item has no text, 0; the last column is 1."""
    names = [" ".join(map(phrase, catalogue.attribute_names(item))) for item in range(len(catalogue))]
    titles, attributes = _vectors(catalogue.titles, encoder), _vectors(names, encoder)
    one = torch.ones(len(catalogue), 1)
    return {
        "attributes": torch.cat([attributes, one], dim=1),
        "titles and attributes": torch.cat([titles, attributes, one], dim=1),
    }


def _vectors(texts: Sequence[str], encoder: RequestEncoder | CachedEncoder) -> Tensor:
    vectors = torch.zeros(len(texts), encoder.dim)
    written = [index for index, text in enumerate(texts) if text.strip()]
    if written:
        vectors[written] = normalize(encoder.encode([texts[index] for index in written]).float().cpu(), dim=-1)
    return vectors


def _ridge(features: Tensor, targets: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Slopes (columns, width) of a weighted regression; the last column's, the mean, has no penalty."""
    penalty = torch.full((features.shape[1],), ridge * float(weights.mean()), dtype=torch.float64)
    penalty[-1] = 1e-6
    left, right = features.double(), targets.double()
    weighted = left * weights.double()[:, None]
    slopes: Tensor = torch.linalg.solve(weighted.T @ left + penalty.diag(), weighted.T @ right)
    return slopes.to(targets.dtype)


def _explained(features: Tensor, targets: Tensor, weights: Tensor, ridge: float) -> float:
    fold = torch.randperm(len(features), generator=torch.Generator().manual_seed(0)) % _FOLDS
    error = total = 0.0
    for number in range(_FOLDS):
        inside, outside = fold != number, fold == number
        slopes = _ridge(features[inside], targets[inside], weights[inside], ridge)
        mean = (weights[inside, None] * targets[inside]).sum(0) / weights[inside].sum().clamp(min=1e-9)
        weight = weights[outside, None]
        error += float((weight * (features[outside] @ slopes - targets[outside]).square()).sum())
        total += float((weight * (targets[outside] - mean).square()).sum())
    return 1 - error / max(total, 1e-9)


class _Anchored(SASRec):
    """SASRec whose items are drawn towards given places while it is trained."""

    pull = 0.0
    anchor: Tensor

    def forward(
        self,
        item_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        items: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        found = super().forward(item_ids, labels, positions, items)
        if isinstance(found, dict):
            away = self.bert.embeddings.word_embeddings.weight[1:] - self.anchor
            found["loss"] = found["loss"] + self.pull * away.square().sum()
        return found


def adapt_backbone(
    source: SASRec,
    alignment: ItemAlignment,
    split: Split,
    options: BackboneOptions | None = None,
    pull: float = 10.0,
    seed: int = 0,
    progress: bool = False,
) -> SASRec:
    """A backbone for the target's items on the source's frozen transformer.

    Only the item embeddings are trained, by the next item's cross-entropy plus ``pull`` / n times their squared
    distances from where ``alignment`` put them, n being the number of next items in training: an embedding is the
    further from there the more often its item was met.

    Args:
        source: The source's backbone, without masks; it is not touched.
        alignment: Of the target's catalogue.
        split: Of the target; test targets are not looked at.
        options: How to train. Its ``max_length`` and ``dropout`` are the source's, whatever it says.
        pull: How strongly items are held where they were put; 0: not at all.
        seed: Of order and dropout.
        progress: Whether to show a progress bar.

    Returns:
        In eval mode. Everything but the items is the source's, bit for bit, so the source's adapters fit.

    Raises:
        DataError: If the alignment is for another number of items than the split has, ``pull`` is negative, or the
            source has masks on it.
    """
    highest = max(int(history.max()) for history in split.train if len(history))
    if highest >= len(alignment.embeddings) or pull < 0:
        raise DataError(
            f"found {len(alignment.embeddings)} aligned items, item {highest} in the split and pull={pull}: expected "
            "the alignment of the split's own catalogue, and a pull of 0 or more."
        )
    config = copy.deepcopy(source.config)
    config.vocab_size = len(alignment.embeddings) + 1
    model = _Anchored(config)
    state = {name: tensor.detach().cpu() for name, tensor in source.state_dict().items()}
    if set(state) != set(model.state_dict()):
        raise DataError("the source backbone's weights are not those of a plain SASRec: unload its masks first.")
    table = state["bert.embeddings.word_embeddings.weight"]
    items = torch.cat([table[:1], alignment.embeddings])
    # the layer that scores the items, where there is one, is tied to the table
    state = {name: items if torch.equal(tensor, table) else tensor for name, tensor in state.items()}
    model.load_state_dict(state)
    model.requires_grad_(False)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    model.register_buffer("anchor", alignment.embeddings.clone(), persistent=False)
    model.pull = pull / sum(max(len(history) - 1, 0) for history in split.train)
    options = replace(options or BackboneOptions(), max_length=source.max_length)
    fit_backbone(model, split, options, seed, progress)
    adapted = SASRec(config)
    adapted.load_state_dict(model.state_dict())
    adapted.requires_grad_(True)
    frozen: SASRec = adapted.eval()
    return frozen


def carry_masks(
    masks: RequestMaskModel, target: SASRec, encoder: RequestEncoder | None = None, is_trainable: bool = False
) -> RequestMaskModel:
    """Put a source's adapter on a target's backbone, by way of its files.

    The fingerprint in them says whether the masked weights are the same.

    Args:
        masks: The source's backbone with its adapter.
        target: From :func:`adapt_backbone`, without masks; it is masked in place.
        encoder: The request encoder, where the adapter's is not a registered one; where that speaks of a catalogue,
            :func:`target_encoder`'s.
        is_trainable: Whether the generator can be trained on.

    Raises:
        DataError: If the adapter gates the layer that scores the items, which is a different one in each domain.
        BaseModelMismatchError: If the target's masked weights are not the source's.
        AdapterFileError, EncoderError: As for :func:`~cramer_peft.load_request_masks`.
    """
    heads = getattr(masks.model, "head_targets", [])
    gated = [name for name in masks.targeted_module_names if any(f".{name}".endswith(f".{head}") for head in heads)]
    if gated:
        raise DataError(
            f"the adapter gates {', '.join(gated)}, which scores the source's items: the target has others. Train it "
            "with target_modules that leave this layer out."
        )
    with tempfile.TemporaryDirectory() as folder:
        masks.save_pretrained(Path(folder))
        return load_request_masks(target, Path(folder), encoder=encoder, is_trainable=is_trainable)


def target_encoder(masks: RequestMaskModel, target: SASRec, catalogue: Catalogue) -> RequestEncoder | None:
    """What reads the requests of a carried adapter: a new encoder where the source's speaks of the source's items.

    Both describe their items by their distance from the middle of their own catalogue: what is asked for sets an item
    apart from the others that there are.

    Args:
        masks: The source's backbone with its adapter.
        target: From :func:`adapt_backbone`; its item embeddings describe the items.
        catalogue: The target's.

    Returns:
        None: the adapter's own encoder knows no catalogue, and serves as it is.
    """
    own = without_cache(masks.encoder())
    if not isinstance(own, CatalogueEncoder):
        return None
    return CatalogueEncoder(catalogue, item_embeddings(target), own.reader)


def shared_attributes(source: Catalogue, target: Catalogue) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The target's attributes that the source has in the same words, and those that are new.

    Args:
        source: Of the domain that the generator was trained on.
        target: Of the other.
    """
    known = {phrase(name) for name in source.attributes}
    shared = tuple(name for name in target.attributes if phrase(name) in known)
    return shared, tuple(name for name in target.attributes if phrase(name) not in known)


@dataclass(frozen=True)
class TransferOptions:
    """What is compared with using the source's generator as it is.

    Attributes:
        generator: Training of a generator on the target alone: the full budget.
        little: Share of that budget's steps that counts as little training.
        full: Whether to train one with the full budget too.
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
    """The target's backbone under masks of different origin, each on a copy of its own.

    Args:
        masks: The source's backbone with its adapter.
        target: From :func:`adapt_backbone`, without masks; it is not touched.
        catalogue: The target's.
        split: The target's; validation and test targets are not looked at.
        options: Steps, and what to train.
        encoder: The request encoder, where the adapter's is not a registered one; by default :func:`target_encoder`'s.
        seed: Of initialisation, order and requests.

    Returns:
        "zero-shot": the source's adapter. "little training": trained on for a few steps on the target. "scratch": as
        many steps without the source. "full training", if asked for: all steps without the source.

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
        config.inference_mode = False  # a loaded adapter's says that it is not to be trained
        rankers[name] = inject_request_masks(copy.deepcopy(target), config, encoder=encoder)
        train_generator(rankers[name], catalogue, split, budget, seed, progress=False)
    return rankers


def transfer_tracks(
    users: EvaluationUsers, source: Catalogue, templates: Mapping[str, Sequence[str]], seed: int
) -> dict[str, Track]:
    """Requests for the target's users: truthful, for and against; "for" also by whether the source knows the attribute.

    Args:
        users: Of the target's validation or test.
        source: The source's catalogue.
        templates: Wordings that the generator was not trained on.
        seed: Of the draws.
    """
    catalogue, count = users.catalogue, len(users.targets)
    blind = BlindTracks(catalogue.attributes, templates, seed)
    tracks = {
        "truthful": truthful_track(catalogue.item_attributes[users.targets], catalogue.attributes, templates, seed),
        "for": blind.counterfactual_for(count),
        "against": blind.counterfactual_against(count),
    }
    for name, among in zip(("for, shared", "for, new"), shared_attributes(source, catalogue), strict=True):
        if among:
            tracks[name] = BlindTracks(catalogue.attributes, templates, seed, among).counterfactual_for(count)
    return tracks


def measure_transfer(
    scorers: Mapping[str, Scorer], frozen: Scorer, users: EvaluationUsers, tracks: Mapping[str, Track], k: int = 10
) -> dict[str, Any]:
    """Each method on each track, beside the frozen target backbone.

    Args:
        scorers: Method → scorer, for example of :func:`transfer_rankers` by ``mask_scorer``.
        frozen: The target's backbone without a request.
        users: Of the target's validation or test.
        tracks: From :func:`transfer_tracks`.
        k: Length of the list.

    Returns:
        ``tracks``: method ("frozen" is one) → track → metric → ``{"value", "low", "high"}``: ``ndcg``, ``hr``, ``mrr``
        where the track is "truthful", ``violation`` where it is "against", else ``satisfaction``, ``normalised_gain``
        and ``retention``. ``differences``: "METHOD - frozen" and "METHOD - OTHER METHOD" → the track's first metric.

    Raises:
        DataError: If nobody counts in a track.
    """
    before = users.score(frozen, None)
    names = ["frozen", *scorers]
    tables: dict[str, Any] = {name: {} for name in names}
    differences: dict[str, Any] = {f"{one} - {two}": {} for one in scorers for two in names if two != one}
    for track_name, track in tracks.items():
        values, ratios = {}, {}
        for name in names:
            scores = before if name == "frozen" else users.score(scorers[name], track.requests)
            values[name], ratios[name] = _track_values(track_name, track, scores, before, users, k)
        means = _Means({(name, metric): value for name in names for metric, value in values[name].items()})
        first = next(iter(values["frozen"]))
        for name in names:
            tables[name][track_name] = {metric: means.entry((name, metric)) for metric in values[name]}
            found = {metric: ratio_interval(*parts) for metric, parts in ratios[name].items() if parts[1].sum() > 0}
            tables[name][track_name] |= {metric: _entry(interval) for metric, interval in found.items()}
        for one in scorers:
            for two in names:
                if two != one:
                    differences[f"{one} - {two}"][track_name] = means.entry((one, first), (two, first))
    return {"tracks": tables, "differences": differences}


class _Means:
    """Means of several columns over the same users, and over the same draws of them: drawn once for all."""

    def __init__(self, columns: Mapping[tuple[str, str], Tensor]) -> None:
        self._places = {key: place for place, key in enumerate(columns)}
        matrix = torch.stack([column.double() for column in columns.values()], dim=1)
        self._means = torch.cat([matrix.mean(0, keepdim=True), resampled_means(matrix)])  # all users first

    def entry(self, key: tuple[str, str], less: tuple[str, str] | None = None) -> dict[str, float]:
        """A mean, or its difference from another, with the middle 95% of the draws."""
        values = self._means[:, self._places[key]]
        if less is not None:
            values = values - self._means[:, self._places[less]]
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.quantile(values[1:], ends, interpolation="nearest").tolist()
        return {"value": float(values[0]), "low": low, "high": high}


def _track_values(
    name: str, track: Track, scores: Tensor, before: Tensor, users: EvaluationUsers, k: int
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Values per user who counts, and the two parts of metrics that are ratios of means."""
    counts = track.counts
    scores, before, seen, targets = scores[counts], before[counts], users.seen[counts], users.targets[counts]
    if not len(targets):
        raise DataError(f"track {name!r}: nobody counts in it.")
    if name == "truthful":
        ranks = target_ranks(scores.masked_fill(seen, -torch.inf), targets)
        return {"ndcg": ndcg(ranks, k), "hr": hit_rate(ranks, k), "mrr": mrr(ranks, k)}, {}
    if name == "against":
        return {"violation": expected_share(scores, seen, track.excluded(users.catalogue)[counts], k)}, {}
    fits = track.satisfying(users.catalogue)[counts]
    satisfaction, frozen = expected_share(scores, seen, fits, k), expected_share(before, seen, fits, k)
    ratios = {"normalised_gain": normalised_gain(satisfaction, frozen, best_share(fits, seen, k))}
    if bool((fits & ~seen).gather(1, targets[:, None]).any()):
        ratios["retention"] = retention(scores, before, seen, fits, targets, k)
    return {"satisfaction": satisfaction}, ratios


def _entry(interval: Interval) -> dict[str, float]:
    return {"value": interval.estimate, "low": interval.low, "high": interval.high}


@dataclass(frozen=True, eq=False)
class PreparedTransfer:
    """A target's backbone, and generators of different origin on copies of it.

    Attributes:
        backbone: The frozen target backbone.
        alignment: Where its items were put.
        rankers: From :func:`transfer_rankers`.
    """

    backbone: SASRec
    alignment: ItemAlignment
    rankers: dict[str, RequestMaskModel]

    @property
    def found(self) -> dict[str, Any]:
        """For JSON: how many items were copied, and how well texts explain the source's."""
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
    """Place the target's items, learn them, carry the generator over, train a little. Arguments: :func:`run_transfer`.

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


def run_transfer(
    masks: RequestMaskModel,
    source: tuple[SASRec, Catalogue, Split],
    target: tuple[Catalogue, Split],
    templates: Mapping[str, Sequence[str]],
    options: TransferOptions,
    encoder: RequestEncoder | None = None,
    same_items: bool = True,
    backbone: BackboneOptions | None = None,
    pull: float = 10.0,
    stage: Stage = "validation",
    seed: int = 0,
) -> dict[str, Any]:
    """All of it: place the target's items, learn them, carry the generator over, train a little, measure.

    Args:
        masks: The source's backbone with its adapter.
        source: A plain copy of the source's backbone, the source's catalogue and split.
        target: The target's catalogue and split.
        templates: Wordings to measure with, unknown to the generator.
        options: What is compared, and for how long it is trained.
        encoder: The request encoder; by default the adapter's own, made anew where it speaks of the source's items.
        same_items: Whether equal titles are the same item in both.
        backbone: How the target's items are learned.
        pull: As for :func:`adapt_backbone`.
        stage: Whose next items are looked at; "test" once all is settled.
        seed: Of everything that is random.

    Returns:
        What :func:`measure_transfer` returns, and ``stage``, ``users``, ``alignment`` (``copied``, ``explained``,
        ``features``), ``shared`` and ``new``: the attributes.

    Raises:
        DataError: As for the functions that it calls.
    """
    source_catalogue, (catalogue, split) = source[1], target
    prepared = prepare_transfer(masks, source, target, options, encoder, same_items, backbone, pull, seed)
    adapted = prepared.backbone
    users = EvaluationUsers.of(catalogue, split, stage, adapted.max_length)
    tracks = transfer_tracks(users, source_catalogue, templates, seed)
    found = measure_transfer(transfer_scorers(prepared.rankers), lambda item_ids, _: adapted(item_ids), users, tracks)
    shared, new = shared_attributes(source_catalogue, catalogue)
    return {
        "stage": stage,
        "users": len(users.targets),
        "alignment": prepared.found,
        "shared": list(shared),
        "new": list(new),
        **found,
    }


def transfer_scorers(rankers: Mapping[str, RequestMaskModel]) -> dict[str, Scorer]:
    """Scorers at full strength, for :func:`measure_transfer`.

    Args:
        rankers: From :func:`transfer_rankers`.
    """
    return {name: mask_scorer(masks) for name, masks in rankers.items()}
