"""Popularity, and a person's own habit, that a request names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cramer_peft.recsys.data.catalogue import POPULARITY, Catalogue
from cramer_peft.recsys.requests.fact import Fact

_HEAD, _TAIL = 0.5, 0.8  # shares of the visits that the best known items have, and that the little known do not add to
_NOT = re.compile(
    r"(?:^| )(?:not|no|never|non|without|isn['’]t|aren['’]t)"
    r"(?: (?:the|a|an|any|so|too|very|that|all|just|always))*$"
)
_USUAL = r"(?:(?:the |all the |those )?(?:usual|same old|big|biggest|typical|huge|greatest|most) )?"
_FAMOUS = r"famous(?= (?:ones|titles|movies|films|books|games|songs|shows)|$)"
_KNOWS = r"(?:knows?|has seen|have seen|has heard of|have heard of)"
_LITTLE_KNOWN = (
    r"hidden (?:gems?|treasures?)|(?:little|lesser|less|not so|not very|barely|hardly)[ -](?:well[ -])?known|obscure|"
    r"underrated|under the radar|undiscovered|overlooked|off the beaten (?:track|path)|unpopular|"
    rf"(?:nobody|no one|few people|not many people) {_KNOWS}"
)
_WELL_KNOWN = (
    rf"{_USUAL}(?:popular|blockbusters?|mainstream|hits|well[ -]known|{_FAMOUS}|best[ -]?sell(?:ers?|ing))|"
    rf"(?:big|huge|smash) hit|(?:everyone|everybody) (?:{_KNOWS}|is watching|talks about|is talking about)"
)
_STUFF = r"(?: (?:stuff|things|fare|choices?|picks?|taste))"
_PREFERENCE = r"(?:i|we) (?:usually|normally|always|generally|typically|mostly|often) \w+(?: (?:to|at))?"
_HABIT = (
    rf"(?:like )?(?:the )?(?:what|things|stuff|those|ones) {_PREFERENCE}|(?:the )?usual{_STUFF}|my usual{_STUFF}?|"
    r"as (?:always|usual)|the usual(?= [^\w\s]|$)"
)
_VERY = r"(?:completely|totally|very|entirely|quite)"
_OTHER = (
    rf"(?:something |anything )?(?:{_VERY} )?(?:different|a change|away|far) (?:from|than|to)|"
    r"not like|not|unlike|other than|instead of|nothing like|anything but|except|out of"
)
_COMFORT = (
    rf"(?:outside|out of) my comfort zone|something {_VERY} different(?! from| than| to)|"
    r"(?:something different|a change)(?= for)"
)


class PopularityFinder:
    """Finds words for popularity in requests.

    Args:
        catalogue: The items; without a column "popularity" of numbers nothing is found.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        visits = catalogue.numbers.get(POPULARITY)
        self._known = None if visits is None else _renown(visits.detach().to("cpu", torch.float64).nan_to_num(0.0))

    def find(self, words: Sequence[str]) -> list[Fact]:
        """Return the words for popularity, each as a fact; see :meth:`CatalogueFacts.find`."""
        if self._known is None:
            return []
        little, well = self._known
        return [
            Fact(start, stop, "popularity", meaning, members, False if _is_denied(words, start) else None)
            for pattern, meaning, members in ((_LITTLE, "little known", little), (_WELL, "well known", well))
            for start, stop, _ in spans_of(pattern, words)
        ]


def find_habits(words: Sequence[str], items: int) -> list[Fact]:
    """Return the words for what a person usually chooses, each as a fact of the kind "habit"."""
    spans = [(start, stop, not said["other"]) for start, stop, said in spans_of(_HABITS, words)]
    spans += [(start, stop, False) for start, stop, _ in spans_of(_CHANGE, words)]
    return [
        Fact(start, stop, "habit", "what you usually choose", torch.zeros(items), wanted)
        for start, stop, wanted in spans
    ]


def spans_of(pattern: re.Pattern[str], words: Sequence[str]) -> Iterator[tuple[int, int, re.Match[str]]]:
    """Yield the start and stop of the words of each place that a pattern fits, and the match."""
    text = " ".join(words).replace("’", "'")
    for found in pattern.finditer(text):
        start = text.count(" ", 0, found.start())
        yield start, start + found[0].count(" ") + 1, found


def _is_denied(words: Sequence[str], start: int) -> bool:
    return bool(_NOT.search(" ".join(words[max(0, start - 6) : start])))


def _renown(visits: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return how little and how well known each item is, (items,) float32 each; None if all are alike.

    The well-known items are the most visited ones that have half of all visits together. The little-known ones are
    those that add only a fifth to them. Between the two both fall evenly.
    """
    if not len(visits) or bool((visits == visits[0]).all()):
        return None
    order = visits.argsort(descending=True, stable=True)
    share = (visits[order].cumsum(0) - visits[order]) / visits.sum()
    before = torch.empty_like(share)
    before[order] = share
    first = torch.searchsorted(-visits[order], -visits)  # items with as many visits are as well known
    before = share[first]
    little = ((before - _HEAD) / (_TAIL - _HEAD)).clamp(0, 1)
    return little.float(), (1 - little).float()


def spoken(pattern: str) -> re.Pattern[str]:
    """Return a pattern that fits whole words."""
    return re.compile(rf"(?<!\S)(?:{pattern})(?!\S)")


_LITTLE, _WELL = spoken(_LITTLE_KNOWN), spoken(_WELL_KNOWN)
_HABITS, _CHANGE = spoken(rf"(?:(?P<other>{_OTHER}) )?(?:{_HABIT})"), spoken(_COMFORT)
