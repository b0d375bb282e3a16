"""Tracks that only the benchmark asks, and what it holds out from training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split, TemporalSplit
from cramer_peft.recsys.evaluation.tracks import ACCURACY, BLANK_TEXT, OVERLAP, BlindTracks, Track
from cramer_peft.recsys.requests.attribute_requests import BLANK, AttributeRequest, item_text, phrase

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
REPLICA, REPLICA_ITEMS = "replica", 3
STRENGTH = "strength"
HELD_OUT = 0.2  # share of the attributes, users or words that are kept from training

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

_T = TypeVar("_T")


class BenchmarkTracks(BlindTracks):
    """Makes further tracks that know nothing of a user's next item; arguments as for :class:`BlindTracks`."""

    def __init__(self, attributes: Sequence[str], templates: Mapping[str, Sequence[str]], seed: int) -> None:
        super().__init__(attributes, templates, seed)
        self._contradictions = tuple(templates["mixed"])

    def mixed(self, users: int) -> Track:
        """Ask for one random attribute and against another.

        Raises:
            DataError: If there is only one attribute.
        """
        return self._everybody("mixed", users, lambda rng: self._requests.counterfactual(rng, "mixed"))

    def paired(self, users: int) -> tuple[Track, Track]:
        """Ask for one random attribute, and against the same one: a request and its negation, user by user."""
        drawn = self._stream("paired").choices(self._attributes, k=users)
        wanted, unwanted = iter(drawn), iter(drawn)
        return (
            self._everybody("paired for", users, lambda rng: self._requests.for_attribute(next(wanted), rng)),
            self._everybody("paired against", users, lambda rng: self._requests.against_attribute(next(unwanted), rng)),
        )

    def shared(self, users: int) -> Track:
        """Ask one and the same request, for a random attribute, for all users: to compare their lists."""
        request = self._requests.counterfactual(self._stream("the shared request"), "for")
        return self._everybody("shared", users, lambda _: request)

    def blank(self, users: int) -> Track:
        """Give a text of white space."""
        return self._everybody(BLANK_TEXT, users, lambda _: BLANK, OVERLAP)

    def irrelevant(self, users: int) -> Track:
        """Give sentences about something else: the list should stay as it is."""
        return self._everybody("irrelevant", users, lambda rng: AttributeRequest(rng.choice(IRRELEVANT)), OVERLAP)

    def contradictory(self, users: int) -> Track:
        """Ask for and against the same random attribute in one sentence.

        No item satisfies it, and all items match it equally well, so the smallest edit is none.
        """

        def make(rng: random.Random) -> AttributeRequest:
            name = rng.choice(self._attributes)
            words = {"wanted": phrase(name), "unwanted": phrase(name)}
            return AttributeRequest(rng.choice(self._contradictions).format_map(words), (name,), (name,), "mixed")

        return self._everybody("contradictory", users, make, OVERLAP)

    def for_unwatched(self, history_counts: Tensor) -> Track:
        """Ask for a random attribute that nothing in the user's history has.

        Args:
            history_counts: (users, attributes). Users whose history has all of them do not count.
        """
        return self._one_of("for unwatched", self._checked(history_counts) == 0, self._requests.for_attribute)

    def against_unwatched(self, history_counts: Tensor) -> Track:
        """Ask against a random attribute that nothing in the user's history has.

        Args:
            history_counts: (users, attributes). Users whose history has all of them do not count.
        """
        return self._one_of("against unwatched", self._checked(history_counts) == 0, self._requests.against_attribute)

    def strength_sweep(self, users: int, strengths: Sequence[float] = STRENGTHS) -> tuple[tuple[float, Track], ...]:
        """Ask the same requests, each for one random attribute, at every strength.

        Args:
            users: Number of users.
            strengths: Increasing, from 0, which must give the frozen model.

        Raises:
            DataError: If ``strengths`` does not start at 0 or does not increase.
        """
        increasing = all(a < b for a, b in pairwise(strengths))
        if not strengths or strengths[0] != 0 or not increasing:
            raise DataError(f"strengths: found {tuple(strengths)}, expected increasing numbers from 0.")
        track = self._everybody(STRENGTH, users, lambda rng: self._requests.counterfactual(rng, "for"))
        return tuple((float(strength), track) for strength in strengths)


def replica_track(catalogue: Catalogue, histories: Sequence[Tensor]) -> Track:
    """Return requests of the paper's kind: the text (title and attributes) of the last three items of the history.

    They ask for nothing in words, so they name no attributes; in the tracks nothing was trained on them. Users with
    fewer than three items do not count.

    Args:
        catalogue: Titles and attributes.
        histories: Per user an int64 tensor (n,) of item indices, without the next item.
    """
    requests = []
    for history in histories:
        if len(history) < REPLICA_ITEMS:
            requests.append(BLANK)
            continue
        text = " ".join(item_text(catalogue, item) for item in history[-REPLICA_ITEMS:].tolist())
        requests.append(AttributeRequest(text))
    counts = torch.tensor([len(history) >= REPLICA_ITEMS for history in histories], dtype=torch.bool)
    return Track(REPLICA, tuple(requests), counts, frozenset({ACCURACY}))


def hold_out(values: Sequence[_T], share: float, seed: int) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """Split attributes, or users, into those that training may use and those for the test alone.

    Args:
        values: Two or more, distinct: names of attributes, or indices of users.
        share: Share of those held out; at least one is held out and one kept.
        seed: Seed of the draw. Equal seeds and values give equal splits.

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


def taught_split(split: Split, leave_out: bool, seed: int) -> tuple[Split, Tensor | None]:
    """Return the split that a method learns from, and the test users that are not in its training (None: all are)."""
    chosen = torch.arange(len(split.train))
    if leave_out:
        chosen = torch.tensor(hold_out(range(len(split.train)), HELD_OUT, seed)[0])
    train = tuple(split.train[user] for user in chosen.tolist())
    if isinstance(split, TemporalSplit):
        taught = replace(split, train=train, train_users=split.train_users[chosen])
        unseen = ~torch.isin(split.test_users, taught.train_users)
        return taught, unseen if bool(unseen.any()) else None
    if not leave_out:
        return split, None
    unseen = torch.ones(len(split.train), dtype=torch.bool)
    unseen[chosen] = False
    return Split(train, split.validation_target[chosen], split.test_target[chosen]), unseen
