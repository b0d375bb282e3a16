"""One fact of a catalogue that a request names: a title, a number, popularity, or a habit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

Span = tuple[int, int]
Among = Callable[[Tensor], tuple[str, Tensor] | None]  # items, (items,) bool → a meaning and its members among them


@dataclass(frozen=True)
class Fact:
    """Words of a request that name items exactly.

    Args:
        start: The first of the words.
        stop: The end of the words; the word there is no part of it.
        kind: "title", "number", "popularity" or "habit".
        meaning: The fact in words that a person reads, as 'Toy Story (1995)' or 'year 1990 to 1999'.
        members: How much each item is meant, (items,) float32 in 0 … 1. Zeros for a habit.
        wanted: True or False if the phrase says so itself, None if the words around it decide.
        certainty: How sure it is that the words mean this, in 0 … 1.
        among: For words that compare, such as "cheap": what they mean among some items; None for too few of them.
    """

    start: int
    stop: int
    kind: str
    meaning: str
    members: Tensor
    wanted: bool | None = None
    certainty: float = 1.0
    among: Among | None = None

    @property
    def span(self) -> Span:
        """The words, as start and stop."""
        return self.start, self.stop


def overlap(one: Span, other: Span) -> bool:
    """Return True if two spans share a word."""
    return one[0] < other[1] and other[0] < one[1]


def is_free(span: Span, taken: Iterable[Span]) -> bool:
    """Return True if a span shares no word with those that are taken."""
    return not any(overlap(span, other) for other in taken)


def apart(facts: Sequence[Fact], taken: Iterable[Span] = ()) -> list[Fact]:
    """Return the facts that share no word with an earlier one or with words that are taken, ordered by their words."""
    kept: list[Fact] = []
    used = list(taken)
    for fact in facts:
        if is_free(fact.span, used):
            kept.append(fact)
            used.append(fact.span)
    return sorted(kept, key=lambda fact: fact.span)
