"""Put sentences together from parts: requests for things, against things, or neither, with marks on the things.

They teach the reader (:mod:`cramer_peft.encoders.reader`) the wording of requests, not their subjects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.resources import files

Piece = tuple[str, int]  # text and mark: 0 neither, 1 wanted, 2 unwanted
NEITHER, WANTED, UNWANTED = range(3)

_JOIN_WANTED = (" and ", " or ", " and also ", " as well as ", ", ", " & ", " plus ", ", maybe ")
_JOIN_UNWANTED = (" or ", " and ", " nor ", ", ", ", and also no ", " or even ", " and certainly no ")
_JOIN_CLAUSES = (
    ", but ",
    " but ",
    "; ",
    ". ",
    " - ",
    " and ",
    " though ",
    ", and ",
    ", just ",
    ", only ",
    ", please, and ",
    ", while ",
    ", however ",
)
_TURNS = (
    " instead of ",
    " rather than ",
    " over ",
    " and not ",
    " but not ",
    ", not ",
    " without ",
    " without the ",
    " without any ",
    " minus ",
    " minus the ",
    " with no ",
    " that isn't ",
    " that's not ",
    " that aren't ",
    " but without ",
    " but skip the ",
    " but less ",
    " but no ",
    " but with no ",
    ", no ",
    " but nothing ",
    " except ",
    " hold the ",
    " free of ",
)
_DETERMINERS = ("a ", "some ", "the ", "any ", "that ", "those ", "all the ", "all this ", "these ", "more ")
_FILLERS = ("really ", "very ", "truly ", "properly ", "kind of ", "quite ", "a bit ", "somewhat ", "super ")
_NEGATIONS = ("non-", "no ", "not ", "no more ", "zero ")
_STOPS, _PAUSES = (".", "!", "?", "..."), (", ", ". ", " - ", " ", "; ")


def parts() -> dict[str, list[str]]:
    """Return the parts of sentences, by kind, from ``parts.txt``."""
    found: dict[str, list[str]] = {}
    for line in files(__package__).joinpath("parts.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind = found.setdefault(line[2:], [])
        elif line:
            kind.append(line)
    return found


class Grammar:
    """A source of marked sentences.

    Args:
        words: Words of the language. About a third of the subjects are drawn from them, so that a request may be about
            anything. Empty: none.
        phrases: The other subjects; None: the list of ``parts.txt``.
    """

    def __init__(self, words: Sequence[str] = (), phrases: Sequence[str] | None = None) -> None:
        self._parts = parts()
        self._words = tuple(words)
        self._phrases = tuple(self._parts["phrase"] if phrases is None else phrases)

    def phrase(self, rng: random.Random) -> str:
        """Draw a subject: a thing that a sentence is for or against."""
        if self._words and rng.random() < 0.35:
            return " ".join(rng.choice(self._words) for _ in range(rng.choice((1, 1, 2))))
        return rng.choice(self._phrases)

    def __call__(self, rng: random.Random) -> list[Piece]:
        """Draw a sentence, in pieces."""
        pieces = self._core(rng)
        if rng.random() < 0.25:
            pieces = [(self._one("opening", rng) + rng.choice((", ", " ", ". ", "! ")), NEITHER), *pieces]
        if rng.random() < 0.25:
            pieces = [*pieces, (rng.choice((", ", " ", ". ")) + self._one("closing", rng), NEITHER)]
        aside, pause = rng.random(), (rng.choice((". ", ", ", "! ")), NEITHER)
        if aside < 0.08:
            pieces = [*pieces, pause, *self._nothing(rng)]
        elif aside < 0.13:
            pieces = [*self._nothing(rng), pause, *pieces]
        return [*pieces, (rng.choice(_STOPS), NEITHER)] if rng.random() < 0.4 else pieces

    def _one(self, kind: str, rng: random.Random) -> str:
        return rng.choice(self._parts[kind])

    def _core(self, rng: random.Random) -> list[Piece]:
        draw = rng.random()
        if draw < 0.28:
            return self._clause(rng, WANTED)
        if draw < 0.52:
            return self._clause(rng, UNWANTED)
        if draw < 0.62:
            return [*self._clause(rng, WANTED), (rng.choice(_TURNS), NEITHER), *self._thing(rng, UNWANTED)]
        if draw < 0.83:
            kinds = rng.choices(
                ((WANTED, UNWANTED), (UNWANTED, WANTED), (WANTED, WANTED), (UNWANTED, UNWANTED)), (8, 8, 3, 2)
            )[0]
            return [*self._clause(rng, kinds[0]), (rng.choice(_JOIN_CLAUSES), NEITHER), *self._clause(rng, kinds[1])]
        return self._nothing(rng)

    def _clause(self, rng: random.Random, mark: int) -> list[Piece]:
        side = "wanted" if mark == WANTED else "unwanted"
        draw = rng.random()
        if draw < 0.72:
            return [(self._one(f"before {side}", rng) + " ", NEITHER), *self._thing(rng, mark)]
        bare = self._thing(rng, mark, determiner=False)
        if draw < 0.90:
            return [*bare, (" " + self._one(f"after {side}", rng), NEITHER)]
        if mark == UNWANTED:
            return [(rng.choice(_NEGATIONS), NEITHER), *bare]
        return bare if draw < 0.95 else [("something ", NEITHER), *bare]

    def _thing(self, rng: random.Random, mark: int, determiner: bool = True) -> list[Piece]:
        pieces: list[Piece] = []
        if determiner and rng.random() < 0.22:
            pieces.append((rng.choice(_DETERMINERS), NEITHER))
        if rng.random() < 0.06:
            pieces.append((rng.choice(_FILLERS), NEITHER))
        pieces.append((self.phrase(rng), mark))
        while rng.random() < 0.25 and len(pieces) < 6:
            joins = _JOIN_WANTED if mark == WANTED else _JOIN_UNWANTED
            pieces += [(rng.choice(joins), NEITHER), (self.phrase(rng), mark)]
        if rng.random() < 0.35:
            pieces.append((" " + self._one("noun", rng), NEITHER))
        return pieces

    def _nothing(self, rng: random.Random) -> list[Piece]:
        found = [self._one("nothing", rng)]
        while rng.random() < 0.3:
            found.append(self._one("nothing", rng))
        return [(rng.choice(_PAUSES).join(found), NEITHER)]
