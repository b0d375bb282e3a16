"""Titles that a request names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from cramer_peft.recsys.data.catalogue import POPULARITY, Catalogue
from cramer_peft.recsys.requests.fact import Fact, Span, is_free, overlap
from cramer_peft.recsys.requests.number_columns import years_of
from cramer_peft.recsys.requests.title_cues import (
    Cue,
    Strength,
    cue_before,
    ends_there,
    is_compared,
    is_joined,
    is_noun,
    is_quoted,
)
from cramer_peft.recsys.requests.title_index import FIRST_LETTERS, LONGEST_NAME, Found, TitleIndex
from cramer_peft.recsys.requests.title_names import ALTERNATIVE, ARTICLES, BEGINNING, FULL, pieces, year_in

_NAMESAKE = 0.5  # how much the less popular items of a name are meant
_KIN = 5  # how many times more visits an item has if "lord of the rings" is to mean it, and not the film so called
_BARE_CERTAINTY, _WEAK_CERTAINTY = 0.7, 0.8
_DASHES = (":", "-", "–", "—")
_LOOKUPS = 24  # places in a request at which misspelt titles are looked for
_SUBTITLE = 10  # words of a subtitle behind which a year is looked for
# Words that point at something said before, and numbers and letters: titles only in quotes, or with a year or a noun.
_WORDS_POINTING = (
    "it her him them us me you we she he they this that these those one ones some all any none both other "
    "others same everything anything something nothing everyone anyone someone first last best rest more most "
    "else what who much two three ever"
)
_POINTING = frozenset(_WORDS_POINTING.split())


class TitleFinder:
    """Finds the titles of a catalogue's items in requests.

    Args:
        catalogue: The items.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._index = TitleIndex(catalogue)
        self._years = years_of(catalogue)
        visits = catalogue.numbers.get(POPULARITY)
        self._visits = torch.zeros(len(catalogue)) if visits is None else visits.nan_to_num(0.0)

    def find(self, words: Sequence[str], taken: Sequence[Span] = ()) -> tuple[list[Fact], list[Fact]]:
        """Return the titles that the sentence announces, and others; see :meth:`CatalogueFacts.find`."""
        facts: list[Fact] = []
        words, start, lookups = list(words), 0, _LOOKUPS
        while start < len(words):
            cue = self._cue(words, start, facts)
            lookups -= cue.strength is not Strength.NONE
            fact = self._title_at(words, start, cue, taken, lookups >= 0)
            if fact is not None:
                facts = _with(facts, fact, words)
            start = start + 1 if fact is None else fact.stop
        alone = [fact for fact in facts if fact.certainty == _BARE_CERTAINTY]
        return [fact for fact in facts if fact.certainty != _BARE_CERTAINTY], alone

    def is_apart(self, words: Sequence[str], start: int, stop: int) -> bool:
        """Return True if no title could hold the words from a start to a stop, alone or with their neighbours."""
        own = tuple(piece for word in words[start:stop] for piece in pieces(word))
        around = [*words[max(0, start - 1) : start], *words[start:stop], *words[stop : stop + 1]]
        together = [piece for word in around for piece in pieces(word)]
        return not self._index.exact(own) and not any(pair in self._index.pairs for pair in pairwise(together))

    def _cue(self, words: Sequence[str], start: int, facts: Sequence[Fact]) -> Cue:
        """Return what is said of a title here; "and" and "," carry on what was said of the title before."""
        cue = cue_before(words, start)
        goes_on = bool(facts) and (is_joined(words, facts[-1].stop, start) or _by_dash(words, facts[-1], start))
        if cue.strength is Strength.NONE and goes_on:
            return Cue(Strength.WEAK, facts[-1].wanted)
        return cue

    def _title_at(
        self, words: Sequence[str], start: int, cue: Cue, taken: Sequence[Span], misspelt: bool
    ) -> Fact | None:
        for stop, found in self._names_at(words, start, cue, misspelt):
            items, end = self._of_year(words, (start, stop), found)
            strength = Strength.SURE if end > stop or is_quoted(words, start, stop) else cue.strength
            found = replace(found, items=items, kin=() if end > stop else found.kin)
            counts = bool(items) and self._counts(words, (start, stop), found, strength)
            if counts and _may_take((start, end), strength, taken):
                return self._fact((start, end), found, strength, cue.wanted)
        return None

    def _names_at(self, words: Sequence[str], start: int, cue: Cue, misspelt: bool) -> Iterator[tuple[int, Found]]:
        """Yield the names that begin at a word, with the ends of their words: exact ones, the longest first."""
        said, stops = (
            _said(words, start) if cue.strength is not Strength.NONE or self._begins(words, start) else ((), [])
        )
        if not said:
            return
        lengths = [length for length in range(len(said), 0, -1) if stops[length - 1]]
        exact = self._exact(said, lengths)
        if cue.strength is Strength.NONE:
            yield from ((stops[length - 1], found) for length, found in exact.items())
            return
        near = self._nearly(said, stops) if misspelt else None
        if near and not any(stops[length - 1] >= near[0] for length in exact):
            yield near
        yield from ((stops[length - 1], found) for length, found in exact.items())
        for length in lengths:
            if length > 1 and length not in exact and self._index.is_distinctive(said[:length]):
                found = self._index.beginning(said[:length])
                if found:
                    yield stops[length - 1], found

    def _begins(self, words: Sequence[str], start: int) -> bool:
        """Return False if no name begins with the first letters of what begins there: a cheap look."""
        start += words[start] in ARTICLES and start + 1 < len(words)
        letters: list[str] = []
        for word in words[start : start + 2 * LONGEST_NAME]:
            letters += pieces(word)
            if len("".join(letters)) >= FIRST_LETTERS:
                break
        return self._index.reach(letters) > 0

    def _exact(self, said: tuple[str, ...], lengths: Sequence[int]) -> dict[int, Found]:
        """Return the names that the first pieces are, by the number of pieces."""
        reach = self._index.reach(said)
        letters = list(accumulate(map(len, said))) if reach else []
        near = [length for length in lengths if reach and letters[length - 1] <= reach]
        names = {length: self._index.exact(said[:length]) for length in near}
        return {length: found for length, found in names.items() if found}

    def _nearly(self, said: tuple[str, ...], stops: Sequence[int]) -> tuple[int, Found] | None:
        """Return the name that is spelt most like the first pieces, with the end of its words."""
        near = self._index.nearly(said)
        if near is None or not stops[near[0] - 1]:
            return None
        worse = self._index.nearer_attribute(said[: near[0]], near[1].score)
        return None if worse else (stops[near[0] - 1], near[1])

    def _of_year(self, words: Sequence[str], span: Span, found: Found) -> tuple[tuple[int, ...], int]:
        """Return the items of the year that is said in brackets behind a name, and the end of the brackets."""
        start, stop = span
        if words[stop : stop + 1] == [")"] and "(" in words[start:stop]:
            return found.items, stop + 1
        year, end = _year_behind(words, stop)
        if year is None or self._years is None:
            return found.items, end
        items = (*found.items, *found.kin)
        return tuple(item for item in items if abs(float(self._years[item]) - year) <= 1), end

    def _counts(self, words: Sequence[str], span: Span, found: Found, strength: Strength) -> bool:
        """Return True if the sentence means a title by these words."""
        name = found.name
        if strength is Strength.SURE:
            return found.rank < BEGINNING and (len(name) > 1 or ends_there(words, span[1]))
        if len(name) < 3 and any(mark in words[span[0] : span[1]] for mark in ",.;!?"):
            return False
        pointing = all(piece in _POINTING or is_noun(piece) for piece in name)
        if name in self._index.attribute_names or pointing or len("".join(name)) < 2:
            return False
        distinctive = self._index.is_distinctive(name)
        if strength is Strength.NONE and len(name) > 1 and is_compared(words, *span):
            strength = Strength.WEAK
        if strength is Strength.NONE:
            return distinctive and self._stands_alone(found)
        alone = not distinctive or found.rank == BEGINNING or len(name) == 1
        if alone and not ends_there(words, span[1]) and not (distinctive and is_noun(words[span[1]])):
            return False
        if all(piece.isdigit() for piece in name) and span[0] and words[span[0] - 1] == "than":
            return False
        if strength is Strength.WEAK:
            own = not all(self._index.is_ordinary(piece) for piece in name)
            return distinctive or (len(name) > 2 and found.rank <= ALTERNATIVE) or (len(name) > 1 and own)
        return len(name) == 1 or not self._index.asking.issuperset(name) or found.rank == FULL

    def _stands_alone(self, found: Found) -> bool:
        """Return True for a name of several words, of which no two alone are words of an attribute or of asking."""
        index, name = self._index, found.name
        if len(name) < 2 or found.rank != FULL or any((piece,) in index.attribute_names for piece in name):
            return False
        return len(name) > 2 or not any(piece in index.asking or is_noun(piece) for piece in name)

    def _fact(self, span: Span, found: Found, strength: Strength, wanted: bool | None) -> Fact:
        items, best = found.items, self._best(found.items)
        if found.kin and self._visits[self._best(found.kin)] >= _KIN * self._visits[best].clamp(min=1):
            items, best = items + found.kin, self._best(found.kin)
        members = torch.zeros(len(self._catalogue))
        members[list(items)] = _NAMESAKE
        members[best] = 1.0
        certainty = {Strength.NONE: _BARE_CERTAINTY, Strength.WEAK: _WEAK_CERTAINTY}.get(strength, 1.0) * found.score
        return Fact(*span, "title", self._meaning(best, len(items) - 1), members, wanted, certainty)

    def _best(self, items: Sequence[int]) -> int:
        return max(items, key=lambda item: (float(self._visits[item]), -item))

    def _meaning(self, item: int, others: int) -> str:
        title = self._catalogue.titles[item]
        year = None if self._years is None else float(self._years[item])
        if year and year == year and year_in(title) is None:
            title = f"{title} ({year:.0f})"
        return f"{title} and {others} more" if others else title


def _by_dash(words: Sequence[str], fact: Fact, start: int) -> bool:
    """Return True if only a colon or a dash stands between a title and what begins at ``start``."""
    return fact.stop + 1 == start and words[fact.stop] in _DASHES


def _with(facts: Sequence[Fact], fact: Fact, words: Sequence[str]) -> list[Fact]:
    """Return facts with another; "avengers : infinity war" is one title if the second is one of the first."""
    if facts and _by_dash(words, facts[-1], fact.start):
        first = facts[-1]
        if bool((first.members[fact.members > 0] > 0).all()):
            return [*facts[:-1], replace(fact, start=first.start, wanted=first.wanted, certainty=first.certainty)]
    return [*facts, fact]


def _said(words: Sequence[str], start: int) -> tuple[tuple[str, ...], list[int]]:
    """Return the pieces of the words from ``start``, and for each the end of its word, 0 inside a word."""
    said: list[str] = []
    stops: list[int] = []
    for place in range(start, min(len(words), start + 2 * LONGEST_NAME)):
        found = pieces(words[place])
        if (place == start and not found) or len(said) > LONGEST_NAME:  # one more than is wanted: an article may go
            break
        said += found
        stops += [0] * (len(found) - 1) + [place + 1] * bool(found)
    if len(said) > 1 and said[0] in ARTICLES and stops[0]:
        said, stops = said[1:], stops[1:]
    return tuple(said[:LONGEST_NAME]), stops[:LONGEST_NAME]


def _year_behind(words: Sequence[str], stop: int) -> tuple[int | None, int]:
    """Return a year in brackets behind a name, perhaps after "!" or a subtitle, and the end of the brackets."""
    place = stop
    if place < len(words) and words[place] in _DASHES:
        later = range(place, min(len(words), place + _SUBTITLE))
        place = next((bracket for bracket in later if words[bracket] in "(["), place)
    while place < len(words) and words[place] in {".", "!", "?"}:
        place += 1
    inside = words[place : place + 3]
    if len(inside) == 3 and inside[0] in "([" and inside[2] in ")]" and re.fullmatch(r"[0-9]{4}", inside[1]):
        return int(inside[1]), place + 3
    return None, stop


def _may_take(span: Span, strength: Strength, taken: Sequence[Span]) -> bool:
    """Return True if no attribute has these words, or only a part of the words of a title that is announced."""
    if strength is Strength.NONE:
        return is_free(span, taken)
    met = [other for other in taken if overlap(span, other)]
    inside = all(span[0] <= start and stop <= span[1] for start, stop in met)
    return inside and all(stop - start < span[1] - span[0] for start, stop in met)
