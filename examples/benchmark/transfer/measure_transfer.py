"""Measure rankers of different origin on the target's users, beside the target's frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmark.measures.measure import Setting, measure
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.bootstrap import Interval, mean_interval
from cramer_peft.recsys.evaluation.tracks import BlindTracks, Track, standard_tracks
from cramer_peft.recsys.evaluation.users import Scorer
from cramer_peft.recsys.requests.attribute_requests import phrase

_FROZEN = {"frozen_ndcg": "ndcg", "frozen_satisfaction": "satisfaction", "frozen_violation": "violation"}


def shared_attributes(source: Catalogue, target: Catalogue) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the target's attributes that the source has in the same words, and those that are new.

    Args:
        source: Catalogue of the domain that the generator was trained on.
        target: Catalogue of the other domain.
    """
    known = {phrase(name) for name in source.attributes}
    shared = tuple(name for name in target.attributes if phrase(name) in known)
    return shared, tuple(name for name in target.attributes if phrase(name) not in known)


def transfer_tracks(setting: Setting, source: Catalogue, templates: Mapping[str, Sequence[str]]) -> dict[str, Track]:
    """Return requests for the target's users: the standard ones, and "for" by shared and by new attributes.

    Args:
        setting: The target's users.
        source: The source's catalogue.
        templates: Wordings that the generator was not trained on.
    """
    tracks = standard_tracks(setting, templates, setting.seed)
    for name, among in zip(("for, shared", "for, new"), shared_attributes(source, setting.catalogue), strict=True):
        if among:
            tracks[name] = BlindTracks(among, templates, setting.seed).counterfactual_for(len(setting))
    return tracks


def measure_transfer(
    scorers: Mapping[str, Scorer], frozen: Scorer, setting: Setting, tracks: Mapping[str, Track]
) -> dict[str, Tensor]:
    """Return the values of each method, user by user: "METHOD: track/metric" → (users,).

    Args:
        scorers: Method → scorer, for example of ``transfer_rankers``.
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
