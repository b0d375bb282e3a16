"""What was understood of a request, for people to read."""

from __future__ import annotations

from dataclasses import dataclass

_SURE = 0.5  # a part below this certainty is marked with "perhaps"


@dataclass(frozen=True)
class HeardPart:
    """A part of a request that was understood.

    Args:
        text: The words of the request.
        kind: "attribute", "title", "number", "popularity", "habit" or "words".
        wanted: True if it is asked for, False if it is asked against.
        meaning: The name of what was understood, as the catalogue has it.
        certainty: How sure it is, in 0 … 1.
    """

    text: str
    kind: str
    wanted: bool
    meaning: str
    certainty: float = 1.0

    def __str__(self) -> str:
        """Return the meaning in words: "like Toy Story (1995)" for a title."""
        named = f"like {self.meaning}" if self.kind == "title" else self.meaning
        return named if self.certainty >= _SURE else f"perhaps {named}"


@dataclass(frozen=True)
class Heard:
    """What was understood of a request, and what was not.

    Args:
        parts: The parts that were understood, in the order of the request.
        missed: The content words that were not understood.
    """

    parts: tuple[HeardPart, ...] = ()
    missed: tuple[str, ...] = ()

    @property
    def needs_history(self) -> bool:
        """True if a part depends on what the person usually takes."""
        return any(part.kind == "habit" for part in self.parts)

    def __str__(self) -> str:
        """Return one line: "wanted: comedy; like Toy Story (1995) · unwanted: horror · not understood: blorp"."""
        groups = [
            ("wanted", "; ".join(str(part) for part in self.parts if part.wanted)),
            ("unwanted", "; ".join(str(part) for part in self.parts if not part.wanted)),
            ("not understood", ", ".join(self.missed)),
        ]
        lines = [f"{name}: {' '.join(said.split())}" for name, said in groups if said]
        return " · ".join(lines if self.parts else ["nothing understood", *lines])


def heard_line(heard: Heard) -> str:
    """Return what was heard of a request and what was not, in one line; if it is nothing, what follows from that."""
    if heard.parts:
        return str(heard)
    missed = f" ({', '.join(' '.join(words.split()) for words in heard.missed)})" if heard.missed else ""
    return f"nothing understood{missed}: the list is the one without a request"
