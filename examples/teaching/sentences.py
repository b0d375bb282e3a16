"""Draw marked sentences from the training wordings and the grammar, as words with a mark each."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence

from cramer_peft.encoders import LONGEST, WORD
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES
from teaching.grammar import NEITHER, UNWANTED, WANTED, Grammar, Piece

Marked = tuple[tuple[str, ...], tuple[int, ...]]  # lower-case words, and the mark of each

_FIELD = re.compile(r"\{(\w+)\}")
_PLACE = "zqxw"  # stands for the subject in comparisons of wordings


def mark_words(pieces: Sequence[Piece]) -> Marked:
    """Split a sentence into words as the reader does; a word gets the mark of its piece."""
    text = "".join(piece for piece, _ in pieces).lower()
    marks = [mark for piece, mark in pieces for _ in piece.lower()]
    found = list(WORD.finditer(text))[:LONGEST]
    return (
        tuple(match.group() for match in found),
        tuple(max(marks[match.start() : match.end()]) for match in found),
    )


def fill(template: str, grammar: Grammar, rng: random.Random) -> list[Piece]:
    """Return a wording in pieces, its fields filled with the grammar's subjects."""
    pieces: list[Piece] = []
    for number, part in enumerate(_FIELD.split(template)):
        if number % 2:
            pieces.append((grammar.phrase(rng), WANTED if part.startswith("wanted") else UNWANTED))
        elif part:
            pieces.append((part, NEITHER))
    return pieces


def sentences(
    count: int,
    templates: Mapping[str, Sequence[str]],
    grammar: Grammar,
    rng: random.Random,
    template_share: float = 0.7,
    never: Collection[str] | None = None,
) -> list[Marked]:
    """Draw marked sentences, none of which contains a wording of the test.

    Args:
        count: Number of sentences.
        templates: Wordings by family, drawn evenly by family.
        grammar: Draws the other sentences, and the subjects of all.
        rng: Source of randomness.
        template_share: Share of sentences from ``templates``.
        never: Wordings, by :func:`wording`, that no sentence may contain; None: those of the test.
    """
    left_out = (
        {wording(template_pieces(t)) for kind in TEST_TEMPLATES.values() for t in kind} if never is None else never
    )
    families = sorted(templates)
    found: list[Marked] = []
    while len(found) < count:
        from_template = rng.random() < template_share
        pieces = fill(rng.choice(templates[rng.choice(families)]), grammar, rng) if from_template else grammar(rng)
        words, marks = mark_words(pieces)
        text = f" {wording(pieces)} "
        if words and not any(f" {left} " in text for left in left_out):
            found.append((words, marks))
    return found


def template_pieces(template: str) -> list[Piece]:
    """Return a wording in pieces with its fields left open."""
    return [(part, WANTED if number % 2 else NEITHER) for number, part in enumerate(_FIELD.split(template)) if part]


def wording(pieces: Sequence[Piece]) -> str:
    """Return the wording of a sentence: without case, punctuation and subjects."""
    text = "".join(piece if mark == NEITHER else _PLACE for piece, mark in pieces)
    joined = re.sub(r"['’-]", "", text.lower())  # within words; other punctuation separates them
    return " ".join(re.sub(r"[^\w\s]", " ", joined).split())
