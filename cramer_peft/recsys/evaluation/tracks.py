"""Tracks: one request for each user, for each question that an evaluation asks.

Only :func:`truthful_track` and the truthful track of :func:`mixed_tracks` see anything of a user's next item: its
attributes. Each track draws from a stream of its own, so that no track depends on another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import BLANK, AttributeRequest, RequestGenerator

ACCURACY, CONTROL, OVERLAP = "accuracy", "control", "overlap"  # of the next item; how far a list follows; with frozen
TRUTHFUL, FOR, AGAINST, FAVOURITE, EMPTY = "truthful", "for", "against", "against favourite", "empty"
BLANK_TEXT = "blank"
OWN = "own requests"  # requests that the data states
SHUFFLED = "shuffled requests"  # each user is given another's


@dataclass(frozen=True, eq=False)
class Track:
    """One request per user; requests that do not count are blank."""

    name: str
    requests: tuple[AttributeRequest, ...]
    counts: Tensor  # the users who count, (users,) bool
    metrics: frozenset[str] = frozenset({CONTROL})

    def __post_init__(self) -> None:
        if self.counts.dtype != torch.bool or self.counts.shape != (len(self.requests),):
            raise DataError(
                f"track {self.name!r}: counts is {self.counts.dtype} of shape {tuple(self.counts.shape)}, expected "
                f"torch.bool of shape ({len(self.requests)},)."
            )

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.requests)


class BlindTracks:
    """Makes tracks that know nothing of a user's next item; templates are as for :class:`RequestGenerator`.

    ``attributes`` are those that requests may name, ``templates`` their wordings as for :class:`RequestGenerator`, and
    ``seed`` is that of all draws.
    """

    def __init__(self, attributes: Sequence[str], templates: Mapping[str, Sequence[str]], seed: int) -> None:
        self._attributes = tuple(attributes)
        self._requests = RequestGenerator(attributes, templates)
        self._seed = seed

    def counterfactual_for(self, users: int) -> Track:
        """Ask for one random attribute each."""
        return self._everybody(FOR, users, lambda rng: self._requests.counterfactual(rng, "for"))

    def counterfactual_against(self, users: int) -> Track:
        """Ask against one random attribute each."""
        return self._everybody(AGAINST, users, lambda rng: self._requests.counterfactual(rng, "against"))

    def empty(self, users: int) -> Track:
        """Ask for nothing, in the wordings given."""
        return self._everybody(EMPTY, users, self._requests.empty, OVERLAP)

    def against_favourite(self, history_counts: Tensor) -> Track:
        """Ask against the most frequent attribute of :func:`history_counts`, of several the first in the vocabulary.

        Users whose history has none of the attributes do not count.
        """
        counts = self._checked(history_counts).long()
        order = torch.arange(len(self._attributes), 0, -1)
        best = (counts * (len(self._attributes) + 1) + order).argmax(1)
        return self._one_of(
            FAVOURITE,
            torch.zeros_like(counts, dtype=torch.bool).scatter_(1, best[:, None], counts.gather(1, best[:, None]) > 0),
            self._requests.against_attribute,
        )

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}:{name}")  # a str seeds alike in every process, a hash would not

    def _everybody(
        self, name: str, users: int, make: Callable[[random.Random], AttributeRequest], metric: str = CONTROL
    ) -> Track:
        if users < 1:
            raise DataError(f"track {name!r}: found {users} users, expected 1 or more.")
        rng = self._stream(name)
        requests = tuple(make(rng) for _ in range(users))
        return Track(name, requests, torch.ones(users, dtype=torch.bool), frozenset({metric}))

    def _checked(self, table: Tensor) -> Tensor:
        width = len(self._attributes)
        if table.dim() != 2 or table.shape[1] != width or not len(table):
            raise DataError(f"found a table of shape {tuple(table.shape)}, expected (users, {width}), not empty.")
        return table.cpu()

    def _one_of(
        self,
        name: str,
        possible: Tensor,
        make: Callable[[str, random.Random], AttributeRequest],
        metrics: frozenset[str] = frozenset({CONTROL}),
    ) -> Track:
        """Make a request about one of the attributes that are ``possible`` for each user, (users, attributes) bool."""
        rng = self._stream(name)
        requests = []
        for row in possible.tolist():
            names = [self._attributes[column] for column, flag in enumerate(row) if flag]
            requests.append(make(rng.choice(names), rng) if names else BLANK)
        return Track(name, tuple(requests), possible.any(1), metrics)


def truthful_track(
    target_attributes: Tensor, attributes: Sequence[str], templates: Mapping[str, Sequence[str]], seed: int
) -> Track:
    """Ask for one attribute of the user's next item, drawn evenly; arguments as for :class:`BlindTracks`.

    The function sees the item's attributes only, (users, attributes) bool, so no title can get into a sentence. Users
    whose item has none of the attributes do not count.
    """
    tracks = BlindTracks(attributes, templates, seed)
    possible = tracks._checked(target_attributes) > 0
    return tracks._one_of(TRUTHFUL, possible, tracks._requests.for_attribute, frozenset({ACCURACY, CONTROL}))


def history_counts(histories: Sequence[Tensor], item_attributes: Tensor) -> Tensor:
    """Count how many items of each history, (n,) int64, have each attribute; (users, attributes) int64."""
    return torch.stack([item_attributes[history].long().sum(0) for history in histories])


def standard_tracks(users: EvaluationUsers, templates: Mapping[str, Sequence[str]], seed: int) -> dict[str, Track]:
    """Make the tracks of ``cramer-peft train`` and ``evaluate``, by name; each request names one attribute."""
    names, flags = users.catalogue.attributes, users.catalogue.item_attributes
    if not names:
        rng = random.Random(f"{seed}:{EMPTY}")
        requests = tuple(AttributeRequest(rng.choice(templates["none"])) for _ in range(len(users)))
        return {EMPTY: Track(EMPTY, requests, torch.ones(len(users), dtype=torch.bool), frozenset({OVERLAP}))}
    blind = BlindTracks(names, templates, seed)
    return {
        TRUTHFUL: truthful_track(flags[users.targets], names, templates, seed),
        FOR: blind.counterfactual_for(len(users)),
        AGAINST: blind.counterfactual_against(len(users)),
        FAVOURITE: blind.against_favourite(history_counts(users.histories, flags)),
        EMPTY: blind.empty(len(users)),
    }


def mixed_tracks(users: EvaluationUsers, requests: RequestGenerator, seed: int) -> dict[str, Track]:
    """Make the tracks of the demo and of tuning, by name; a truthful request here is of any family."""
    catalogue, everybody = users.catalogue, torch.ones(len(users), dtype=torch.bool)
    truthful, wanted, unwanted, favourite, empty = (random.Random(5 * seed + number) for number in range(5))
    counts = history_counts([history.unique() for history in users.histories], catalogue.item_attributes)
    frequent = counts.argmax(1).tolist()  # of equal counts the first
    made = {
        TRUTHFUL: [requests.truthful(catalogue.attribute_names(item), truthful) for item in users.targets.tolist()],
        FOR: [requests.counterfactual(wanted, "for") for _ in everybody],
        AGAINST: [requests.counterfactual(unwanted, "against") for _ in everybody],
        FAVOURITE: [requests.against_attribute(catalogue.attributes[column], favourite) for column in frequent],
        EMPTY: [requests.empty(empty) for _ in everybody],
        BLANK_TEXT: [BLANK for _ in everybody],
    }
    kinds = {TRUTHFUL: ACCURACY, EMPTY: OVERLAP, BLANK_TEXT: OVERLAP}
    return {
        name: Track(name, tuple(requests), everybody, frozenset({kinds.get(name, CONTROL)}))
        for name, requests in made.items()
    }


def own_track(texts: Sequence[str | None], name: str = OWN) -> Track:
    """Return the requests that the data states; users without one do not count."""
    requests = tuple(AttributeRequest(text or " ") for text in texts)
    counts = torch.tensor([text is not None for text in texts], dtype=torch.bool)
    return Track(name, requests, counts, frozenset({ACCURACY}))


def shuffled_track(texts: Sequence[str | None], seed: int) -> Track:
    """Give each user who states a request that of another; those whose own says the same do not count."""
    return own_track(shuffled_texts(texts, seed), SHUFFLED)


def shuffled_texts(texts: Sequence[str | None], seed: int) -> list[str | None]:
    """Return for each user who states a request that of another; None for those whose own says the same."""
    rows = [row for row, text in enumerate(texts) if text is not None]
    random.Random(f"{seed}:{SHUFFLED}").shuffle(rows)
    given: list[str | None] = [None] * len(texts)
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        given[row] = None if texts[row] == texts[other] else texts[other]
    return given
