"""The parts of a request that mean something, as the encoder works with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cramer_peft.encoders import Reading
from cramer_peft.recsys.requests.fact import Fact, Span

OPEN = "words"  # the kind of words that are neither an attribute nor a fact
SURE = 0.5  # a word that no item has is asked for if the reader is as sure of it

Named = tuple[int, int, str]  # the start and stop of the words that name an attribute, and its name
Thing = tuple[Span, str, Any]  # the words of something that a request names, its kind, and what was found there


@dataclass(frozen=True)
class RequestPart:
    """Words of a request that mean something: what kind of thing, its name, and its meaning (width,)."""

    text: str
    kind: str
    name: str
    meaning: Tensor
    wanted: bool | None = None
    certainty: float = 1.0
    rarity: float = 1.0  # its weight beside others: a rare word tells more
    fact: Fact | None = None


Hearing = tuple[list[RequestPart], tuple[str, ...]]  # what was found in a request, and the words that mean nothing


def continued(found: list[RequestPart], earlier: list[RequestPart]) -> list[RequestPart]:
    """Return what is asked, then what was asked before and not now, which counts half."""
    names = {part.name for part in found}
    return [*found, *(replace(part, certainty=part.certainty / 2) for part in earlier if part.name not in names)]


def marked(reading: Reading, spans: Sequence[Thing]) -> list[Thing]:
    """Return words that the reader surely marks and that are in no span, as open words: "sad" in "something sad"."""
    used = {place for span, *_ in spans for place in range(*span)}
    sure = [max(marks) >= SURE for marks in zip(reading.wanted.tolist(), reading.unwanted.tolist(), strict=True)]
    found: list[Thing] = []
    for place, word in enumerate(reading.words):
        if sure[place] and word[0].isalpha() and place not in used:
            start = found.pop()[0][0] if found and found[-1][0][1] == place else place
            found.append(((start, place + 1), OPEN, None))
    return found


def marks_of(reading: Reading, spans: Sequence[Span]) -> list[tuple[float, float]]:
    """Return how sure it is of each span that its words are asked for, and asked against."""
    sides = reading.wanted.tolist(), reading.unwanted.tolist()
    return [tuple(sum(side[start:stop]) / (stop - start) for side in sides) for start, stop in spans]  # type: ignore[misc]
