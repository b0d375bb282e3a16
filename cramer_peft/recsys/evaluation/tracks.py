"""Tracks: one request per test user for each question that is asked of a method.

All but :func:`truthful_track` are made without sight of what the user does next: nothing that they are given holds
it. Each track draws from a stream of its own, so that none depends on another.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attributes import (
    AttributeRequest,
    RequestGenerator,
    item_text,
    match_scores,
    phrase,
    satisfies,
)

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
REPLICA_ITEMS = 3

IRRELEVANT = (
    "What's the weather going to be like tomorrow?",
    "Can you set an alarm for seven?",
    "How do I reset my password?",
    "My parcel still hasn't arrived",
    "Which bus goes to the central station?",
    "Please turn the volume down a bit",
    "How many grams are there in an ounce?",
    "I have to call my dentist on Monday",
    "The printer is out of paper again",
    "Could you change the language of the menus?",
    "What is the capital of Portugal?",
    "I'd like to cancel my subscription",
)

_BLANK = AttributeRequest(" ", (), (), "none")
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Track:
    """One request per user.

    Attributes:
        name: What is asked.
        requests: Per user the sentence, the attributes it asks for, and those it excludes.
        counts: Which users count, (users,) bool; the others hold a blank request.
    """

    name: str
    requests: tuple[AttributeRequest, ...]
    counts: Tensor

    def __post_init__(self) -> None:
        if self.counts.dtype != torch.bool or self.counts.shape != (len(self.requests),):
            raise DataError(
                f"track {self.name!r}: counts is {self.counts.dtype} of shape {tuple(self.counts.shape)}, expected "
                f"torch.bool of shape ({len(self.requests)},)."
            )

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.requests)

    def satisfying(self, catalogue: Catalogue) -> Tensor:
        """Which items satisfy each user's request, (users, items) bool."""
        return satisfies(self.requests, catalogue.attributes, catalogue.item_attributes)

    def excluded(self, catalogue: Catalogue) -> Tensor:
        """Which items have an attribute that the user's request excludes, (users, items) bool."""
        turned = [AttributeRequest(request.text, request.unwanted, (), request.family) for request in self.requests]
        return match_scores(turned, catalogue.attributes, catalogue.item_attributes) > 0


def truthful_track(
    target_attributes: Tensor,
    attributes: Sequence[str],
    templates: Mapping[str, Sequence[str]],
    seed: int,
    among: Sequence[str] | None = None,
) -> Track:
    """A request for one attribute that the user's next item has, drawn evenly among them.

    The item itself is not handed over, only its attributes: a title cannot get into the sentence.

    Args:
        target_attributes: Of each user's next item, (users, attributes) bool.
        attributes: The catalogue's vocabulary, in the order of the columns.
        templates: Wordings, as for :class:`RequestGenerator`.
        seed: Of the draws.
        among: The attributes that may be named; by default all. Users whose item has none of them do not count.

    Raises:
        DataError: If ``target_attributes`` does not fit the vocabulary or ``among`` is not part of it.
    """
    tracks = BlindTracks(attributes, templates, seed, among)
    return tracks._one_of("truthful", tracks._checked(target_attributes) > 0, tracks._requests.for_attribute)


class BlindTracks:
    """Makes the tracks that know nothing of what a user does next.

    Args:
        attributes: The catalogue's vocabulary.
        templates: Wordings, as for :class:`RequestGenerator`; the test's should be unknown to the generator.
        seed: Of all draws.
        among: The attributes that may be named, such as those held out from training; by default all.

    Raises:
        DataError: If ``among`` is empty or not part of the vocabulary, or the templates are not as expected.
    """

    def __init__(
        self,
        attributes: Sequence[str],
        templates: Mapping[str, Sequence[str]],
        seed: int,
        among: Sequence[str] | None = None,
    ) -> None:
        named = tuple(attributes if among is None else among)
        unknown = [name for name in named if name not in attributes]
        if unknown:
            raise DataError(f"among: {unknown} are not in the catalogue's vocabulary.")
        self._named = named
        self._columns = torch.tensor([list(attributes).index(name) for name in named], dtype=torch.long)
        self._width = len(attributes)
        self._requests = RequestGenerator(named, templates)
        self._contradictions = tuple(templates["mixed"])
        self._seed = seed

    def _stream(self, name: str) -> random.Random:
        return random.Random(f"{self._seed}:{name}")  # a text seeds alike in every process

    def _everybody(self, name: str, users: int, make: Callable[[random.Random], AttributeRequest]) -> Track:
        if users < 1:
            raise DataError(f"track {name!r}: found {users} users, expected 1 or more.")
        rng = self._stream(name)
        return Track(name, tuple(make(rng) for _ in range(users)), torch.ones(users, dtype=torch.bool))

    def counterfactual_for(self, users: int) -> Track:
        """For one random attribute each."""
        return self._everybody("for", users, lambda rng: self._requests.counterfactual(rng, "for"))

    def counterfactual_against(self, users: int) -> Track:
        """Against one random attribute each."""
        return self._everybody("against", users, lambda rng: self._requests.counterfactual(rng, "against"))

    def mixed(self, users: int) -> Track:
        """For one random attribute and against another.

        Raises:
            DataError: If only one attribute may be named.
        """
        return self._everybody("mixed", users, lambda rng: self._requests.counterfactual(rng, "mixed"))

    def paired(self, users: int) -> tuple[Track, Track]:
        """For one random attribute, and against the same one: a request and its negation, user by user."""
        drawn = self._stream("paired").choices(self._named, k=users)
        wanted, unwanted = iter(drawn), iter(drawn)
        return (
            self._everybody("paired for", users, lambda rng: self._requests.for_attribute(next(wanted), rng)),
            self._everybody("paired against", users, lambda rng: self._requests.against_attribute(next(unwanted), rng)),
        )

    def shared(self, users: int) -> Track:
        """One and the same request, for a random attribute, for everybody: to compare the lists of users."""
        request = self._requests.counterfactual(self._stream("the shared request"), "for")
        return self._everybody("shared", users, lambda _: request)

    def empty(self, users: int) -> Track:
        """Sentences that ask nothing, in the wordings given."""
        return self._everybody("empty", users, self._requests.empty)

    def blank(self, users: int) -> Track:
        """A text of white space."""
        return self._everybody("blank", users, lambda _: _BLANK)

    def irrelevant(self, users: int) -> Track:
        """Sentences about something else altogether: the list should stay as it is."""
        return self._everybody(
            "irrelevant", users, lambda rng: AttributeRequest(rng.choice(IRRELEVANT), (), (), "none")
        )

    def contradictory(self, users: int) -> Track:
        """For and against the same random attribute in one sentence.

        No item satisfies it, and all match it equally well, so the smallest edit is none: see how far the list moves.
        """

        def make(rng: random.Random) -> AttributeRequest:
            name = rng.choice(self._named)
            words = {"wanted": phrase(name), "unwanted": phrase(name)}
            return AttributeRequest(rng.choice(self._contradictions).format_map(words), (name,), (name,), "mixed")

        return self._everybody("contradictory", users, make)

    def against_favourite(self, history_counts: Tensor) -> Track:
        """Against the attribute that is most frequent in the user's history; the first in the vocabulary of several.

        Args:
            history_counts: How many items of each history have each attribute, (users, attributes), by
                :func:`history_counts`. Users whose history has none of them do not count.
        """
        counts = self._checked(history_counts).long()
        order = torch.arange(len(self._named), 0, -1)
        best = (counts * (len(self._named) + 1) + order).argmax(1)
        return self._one_of(
            "against favourite",
            torch.zeros_like(counts, dtype=torch.bool).scatter_(1, best[:, None], counts.gather(1, best[:, None]) > 0),
            self._requests.against_attribute,
        )

    def for_unwatched(self, history_counts: Tensor) -> Track:
        """For a random attribute that nothing in the user's history has.

        Args:
            history_counts: (users, attributes). Users whose history has all of them do not count.
        """
        return self._one_of("for unwatched", self._checked(history_counts) == 0, self._requests.for_attribute)

    def against_unwatched(self, history_counts: Tensor) -> Track:
        """Against a random attribute that nothing in the user's history has.

        Args:
            history_counts: (users, attributes). Users whose history has all of them do not count.
        """
        return self._one_of("against unwatched", self._checked(history_counts) == 0, self._requests.against_attribute)

    def strength_sweep(self, users: int, strengths: Sequence[float] = STRENGTHS) -> tuple[tuple[float, Track], ...]:
        """The same requests, each for one random attribute, at every strength.

        Args:
            users: How many.
            strengths: Increasing, from 0, which must give the frozen model.

        Raises:
            DataError: If ``strengths`` does not start at 0 or does not increase.
        """
        increasing = all(a < b for a, b in pairwise(strengths))
        if not strengths or strengths[0] != 0 or not increasing:
            raise DataError(f"strengths: found {tuple(strengths)}, expected increasing numbers from 0.")
        track = self._everybody("strength", users, lambda rng: self._requests.counterfactual(rng, "for"))
        return tuple((float(strength), track) for strength in strengths)

    def _checked(self, table: Tensor) -> Tensor:
        """The columns of the attributes that may be named."""
        if table.dim() != 2 or table.shape[1] != self._width or not len(table):
            raise DataError(f"found a table of shape {tuple(table.shape)}, expected (users, {self._width}), not empty.")
        return table.cpu()[:, self._columns]

    def _one_of(self, name: str, possible: Tensor, make: Callable[[str, random.Random], AttributeRequest]) -> Track:
        rng = self._stream(name)
        requests = []
        for row in possible.tolist():
            names = [self._named[column] for column, flag in enumerate(row) if flag]
            requests.append(make(rng.choice(names), rng) if names else _BLANK)
        return Track(name, tuple(requests), possible.any(1))


def history_counts(histories: Sequence[Tensor], item_attributes: Tensor) -> Tensor:
    """How many items of each history have each attribute, (users, attributes) int64.

    Args:
        histories: Per user an int64 tensor (n,) of item indices, without what comes next.
        item_attributes: (items, attributes) bool.
    """
    return torch.stack([item_attributes[history].long().sum(0) for history in histories])


def replica_track(catalogue: Catalogue, histories: Sequence[Tensor]) -> Track:
    """The paper's requests: the text (title and attributes) of the last three items of the history.

    They ask for nothing in words, so they name no attributes; users with fewer than three items do not count.

    Args:
        catalogue: Titles and attributes.
        histories: Per user an int64 tensor (n,) of item indices, without what comes next.
    """
    requests = []
    for history in histories:
        if len(history) < REPLICA_ITEMS:
            requests.append(_BLANK)
            continue
        text = " ".join(item_text(catalogue, item) for item in history[-REPLICA_ITEMS:].tolist())
        requests.append(AttributeRequest(text, (), (), "none"))
    counts = torch.tensor([len(history) >= REPLICA_ITEMS for history in histories], dtype=torch.bool)
    return Track("replica", tuple(requests), counts)


def hold_out(values: Sequence[_T], share: float, seed: int) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """Split attributes, or users, into those that training may use and those that only the test sees.

    Args:
        values: Two or more, distinct: names of attributes, or indices of users.
        share: Of those held out; at least one is held out and one kept.
        seed: Of the draw. The same seed and values give the same split.

    Returns:
        Kept and held out, each in the order of ``values``.

    Raises:
        DataError: If ``share`` is not between 0 and 1, there are fewer than two values, or one repeats.
    """
    if not 0 < share < 1:
        raise DataError(f"share: found {share}, expected a number between 0 and 1.")
    if len(values) < 2 or len(set(values)) < len(values):
        raise DataError(
            f"found {len(values)} values, {len(set(values))} of them distinct: expected two or more, distinct."
        )
    count = min(max(1, round(share * len(values))), len(values) - 1)
    held = set(random.Random(f"{seed}:held out").sample(range(len(values)), count))
    kept = tuple(value for index, value in enumerate(values) if index not in held)
    return kept, tuple(values[index] for index in sorted(held))
