"""The parts of a request that mean something, as the encoder works with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cramer_peft.encoders import Reading
from cramer_peft.recsys.requests.fact import Among, Fact, Span

OPEN = "words"  # the kind of words that are neither an attribute nor a fact
ASKED = 0.2  # open words count from there on, because the reader knows fewer of them
_AGAINST, _AGAINST_CLEARLY = 1.6, 3.0  # open words, and facts, are unwanted if the reader's marks say so by this factor
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
    among: Among | None = None  # what words that compare mean among some items


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


def as_their_heads(found: Sequence[tuple[Span, RequestPart]]) -> list[RequestPart]:
    """Return the parts, of which open words take the side of those right behind them: "strong" in "strong women"."""
    parts = [part for _, part in found]
    for place in reversed(range(len(parts) - 1)):
        (_, stop), (start, _) = found[place][0], found[place + 1][0]
        if stop == start and parts[place].kind == parts[place + 1].kind == OPEN:
            parts[place] = replace(parts[place], wanted=parts[place + 1].wanted)
    return parts


def is_wanted(kind: str, what: Any, wanted: float, unwanted: float, contrasted: bool) -> bool:
    """Return True for what is asked for, by the reader's marks, unless the words themselves tell.

    ``contrasted`` is True right after "but": the reader takes "like Heat but funny" for "not funny".
    """
    if isinstance(what, Fact) and what.wanted is not None:
        return what.wanted
    if kind == "attribute":
        return wanted > unwanted
    return unwanted <= (_AGAINST_CLEARLY if isinstance(what, Fact) or contrasted else _AGAINST) * wanted


def is_certain(kind: str, what: Any, own: tuple[float, float]) -> bool:
    """Return True if the reader marks words by themselves; words that no item has must be marked clearly."""
    return sum(own) >= ASKED if kind != OPEN or what is not None else max(own) >= SURE
