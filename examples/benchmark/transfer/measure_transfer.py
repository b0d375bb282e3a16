"""Measure generators of different origin on the target's users, beside the target's frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmark.measures.measure import Setting, frozen_scorer, measure
from benchmark.measures.summary import entry, summarise
from benchmark.transfer.generators import TransferOptions, prepare_transfer
from cramer_peft import RequestMaskModel
from cramer_peft.encoders import RequestEncoder
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split, Stage
from cramer_peft.recsys.evaluation.bootstrap import Interval, mean_interval
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, truthful_track
from cramer_peft.recsys.evaluation.users import Scorer, mask_scorer
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.training.backbone_training import BackboneOptions

_FROZEN = {"frozen_ndcg": "ndcg", "frozen_satisfaction": "satisfaction", "frozen_violation": "violation"}
_FIRST_METRIC = {"truthful": "ndcg", "against": "violation"}  # of the other tracks: satisfaction


def shared_attributes(source: Catalogue, target: Catalogue) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the target's attributes that the source has in the same words, and those that are new.

    Args:
        source: Catalogue of the domain that the generator was trained on.
        target: Catalogue of the other domain.
    """
    known = {phrase(name) for name in source.attributes}
    shared = tuple(name for name in target.attributes if phrase(name) in known)
    return shared, tuple(name for name in target.attributes if phrase(name) not in known)


def stage_targets(split: Split, stage: Stage) -> Tensor:
    """Return the next items of a stage, (users,) int64."""
    return split.test_target if stage == "test" else split.validation_target


def transfer_tracks(
    target: Catalogue, next_items: Tensor, source: Catalogue, templates: Mapping[str, Sequence[str]], seed: int
) -> dict[str, Track]:
    """Return requests for the target's users: truthful, for and against, and "for" by shared and new attributes.

    Args:
        target: The target's catalogue.
        next_items: The item that comes next for each user of the target, (users,) int64.
        source: The source's catalogue.
        templates: Wordings that the generator was not trained on.
        seed: Seed of the draws.
    """
    count = len(next_items)
    blind = BlindTracks(target.attributes, templates, seed)
    tracks = {
        "truthful": truthful_track(target.item_attributes[next_items], target.attributes, templates, seed),
        "for": blind.counterfactual_for(count),
        "against": blind.counterfactual_against(count),
    }
    for name, among in zip(("for, shared", "for, new"), shared_attributes(source, target), strict=True):
        if among:
            tracks[name] = BlindTracks(among, templates, seed).counterfactual_for(count)
    return tracks


def measure_transfer(
    scorers: Mapping[str, Scorer], frozen: Scorer, setting: Setting, tracks: Mapping[str, Track]
) -> dict[str, Tensor]:
    """Return the values of each method, user by user: "METHOD: track/metric" → (users,).

    Args:
        scorers: Method → scorer, for example of ``transfer_rankers`` by ``mask_scorer``.
        frozen: The target's backbone without a request.
        setting: The target's users.
        tracks: Return value of :func:`transfer_tracks`.
    """
    values: dict[str, Tensor] = {}
    for name, scorer in scorers.items():
        measured = measure(setting, frozen, scorer, tracks=tracks, reads=False)
        values.update({f"{name}: {key}": value for key, value in measured.values.items()})
    return values


def values_of(values: Mapping[str, Tensor], method: str) -> dict[str, Tensor]:
    """Return one method's values: "track/metric" → (users,)."""
    start = f"{method}: "
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def frozen_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the frozen model's values under the names of a method's.

    Args:
        values: One method's, which hold the frozen model's as "track/frozen_metric".
    """
    found = {}
    for key, value in values.items():
        track, metric = key.rsplit("/", 1)
        if metric in _FROZEN:
            found[f"{track}/{_FROZEN[metric]}"] = value
    return found


def paired_difference(one: Tensor, two: Tensor) -> Interval:
    """Return the mean difference over the users who count in both."""
    difference = one - two
    return mean_interval(difference[~difference.isnan()])


def compare_transfer(values: Mapping[str, Tensor], methods: Sequence[str]) -> dict[str, Any]:
    """Summarise each method's values beside the frozen model's.

    Args:
        values: Return value of :func:`measure_transfer`.
        methods: Names of the methods.

    Returns:
        ``tracks``: method ("frozen" is one) → track → metric → ``{"value", "low", "high"}``. ``differences``:
        "METHOD - frozen" and "METHOD - OTHER METHOD" → track → the difference of the track's first metric.
    """
    own = {name: values_of(values, name) for name in methods}
    own = {"frozen": frozen_values(own[methods[0]]), **own}
    tracks = {name: summarise(found) for name, found in own.items()}
    differences = {}
    for one in methods:
        for two in own:
            if one != two:
                keys = {track: f"{track}/{_FIRST_METRIC.get(track, 'satisfaction')}" for track in tracks[one]}
                differences[f"{one} - {two}"] = {
                    track: entry(paired_difference(own[one][key], own[two][key])) for track, key in keys.items()
                }
    return {"tracks": tracks, "differences": differences}


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
    """Carry a generator to another domain and measure it there: all steps of a transfer.

    Args:
        masks: The source's backbone with its adapter.
        source: A plain copy of the source's backbone, the source's catalogue and split.
        target: The target's catalogue and split.
        templates: Wordings to measure with, unknown to the generator.
        options: The generators to compare, and their training.
        encoder: The request encoder; by default the adapter's own, made anew if it reads the source's catalogue.
        same_items: Whether equal titles are the same item in both data sets.
        backbone: Training of the target's items.
        pull: As for ``adapt_backbone``.
        stage: The stage whose next items are looked at; "test" once all is settled.
        seed: Seed of everything random.

    Returns:
        The entries of :func:`compare_transfer`, and ``stage``, ``users``, ``alignment`` (``copied``, ``explained``,
        ``features``), ``shared`` and ``new``: the attributes.

    Raises:
        DataError: As for the functions that it calls.
    """
    source_catalogue, (catalogue, split) = source[1], target
    prepared = prepare_transfer(masks, source, target, options, encoder, same_items, backbone, pull, seed)
    next_items, adapted = stage_targets(split, stage), prepared.backbone
    setting = Setting(catalogue, split.history(stage), next_items, adapted.max_length, seed)
    tracks = transfer_tracks(catalogue, next_items, source_catalogue, templates, seed)
    scorers = {name: mask_scorer(ranker, 1.0) for name, ranker in prepared.rankers.items()}
    values = measure_transfer(scorers, frozen_scorer(adapted), setting, tracks)
    shared, new = shared_attributes(source_catalogue, catalogue)
    return {
        "stage": stage,
        "users": len(next_items),
        "alignment": prepared.found,
        "shared": list(shared),
        "new": list(new),
        **compare_transfer(values, list(scorers)),
    }
