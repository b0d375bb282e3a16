"""Wordings that were read before: requests that differ only in the attributes that they name are read once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from cramer_peft.recsys.requests.request_parts import Hearing, Named
from cramer_peft.recsys.requests.wordings import frame_words

_BLANK = "ǂ" * 8  # stands for a word of an attribute; no request has it, and no title is spelt like it
_NAME = "\0"  # begins the name of an attribute that is left open; its number follows
_AROUND = frozenset(".,;!?:")  # marks that may stand beside such an attribute
_MOST = 30_000  # wordings; the training has 19,000

Wording = tuple[str, ...]


class KnownWordings:
    """What was understood of wordings, with their attributes left open.

    An attribute is left open where common words of requests stand on both sides, and no title could hold it with them.
    Any other counts as words of the wording, so that a request is always read in the same way.

    Args:
        is_apart: Returns True if no title could hold the words from a start to a stop, alone or with their neighbours.
    """

    def __init__(self, is_apart: Callable[[Sequence[str], int, int], bool]) -> None:
        self._is_apart = is_apart
        self._known: dict[Wording, Hearing | None] = {}
        self._lock = threading.Lock()

    def of(self, words: Wording, named: Sequence[Named]) -> tuple[Wording, list[Named]]:
        """Return the wording of a request, and the attributes in it; those that are left open have no name yet."""
        blank, own = list(words), list(named)
        for place, (start, stop, _) in enumerate(named):
            around = (*words[max(0, start - 1) : start], *words[stop : stop + 1])
            usual = all(word in _AROUND or word in frame_words() for word in around)
            if usual and self._is_apart(words, start, stop):
                blank[start:stop] = [_BLANK] * (stop - start)
                own[place] = start, stop, f"{_NAME}{place}"
        return tuple(blank), own

    def look(self, wordings: Iterable[Wording]) -> dict[Wording, Hearing | None]:
        """Return what was understood of those wordings that are known; None if it depends on what is left open."""
        known = self._known
        return {wording: known[wording] for wording in dict.fromkeys(wordings) if wording in known}

    def keep(self, heard: Mapping[Wording, Hearing]) -> dict[Wording, Hearing | None]:
        """Remember what was understood of new wordings, and return it as :meth:`look` does."""
        new = {wording: None if _depends(wording, own) else own for wording, own in heard.items()}
        with self._lock:
            if len(self._known) + len(new) > _MOST:
                self._known = {}  # another one, because somebody may look into the old one
            self._known.update(new)
        return new


def open_place(name: str) -> int | None:
    """Return which attribute of a request a name is left open for; None for the name of anything else."""
    return int(name[1:]) if name.startswith(_NAME) else None


def _depends(wording: Wording, heard: Hearing) -> bool:
    """Return True if what was understood of a wording depends on the attributes that are left open."""
    found, missed = heard
    if _BLANK not in wording:
        return False
    texts = [text for part in found if open_place(part.name) is None for text in (part.text, part.name)]
    return not found or any(_BLANK in text for text in (*texts, *missed))
