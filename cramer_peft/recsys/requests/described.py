"""Words that tell by their place that they describe what is asked for: "something cosy", "a wistful, quiet movie"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cramer_peft.recsys.requests.request_parts import OPEN, SURE, Thing
from cramer_peft.recsys.requests.terms import Terms
from cramer_peft.recsys.requests.wordings import empty_words, usual_words

_THINGS = frozenset({"something", "anything", "everything", "one", "ones", "stuff"})
_BEFORE_IT = _THINGS | {"more", "less", "about", "see", "watch"}
_ARTICLES = frozenset({"a", "an", "the", "any"})
_LEADS = _ARTICLES | {"some", "want", "need", "like", "love", "prefer", "watch", "for", "of", "with"}
_NOT = frozenset({"no", "not", "without", "non"})
_JOINTS = frozenset({"and", "or", "nor", ","})
_ENDS = _JOINTS | {"but", "please", "today", "tonight"}
_TOLD = 0.85  # as sure is the reader, who does not see the words, that something is asked for or against there
_CUE = 3  # words of which the last one announces a title


def described(
    words: Sequence[str],
    things: Sequence[Thing],
    frames: Sequence[tuple[float, float]],
    terms: Terms,
    is_name: Callable[[str], bool],
) -> list[bool]:
    """Return which things tell by their place how an item should be; the reader does not mark all of them.

    Args:
        words: The words of a request.
        things: What it names.
        frames: How sure the reader is of each that it is asked for, and against, without seeing its words.
        terms: The terms of the items.
        is_name: Returns True for a name of items that asks for nothing, such as "movie".
    """
    found: list[bool] = []
    for place, ((start, stop), kind, what) in enumerate(things):
        head = _last_beside(things, place)
        if kind != OPEN or sum(frames[head]) < SURE:
            found.append(False)
            continue
        named = stop - start > 1 and what is None and is_name(words[stop - 1])  # "wistful movie"
        own = words[start : stop - 1 if named else stop]
        (first, end), its_kind, _ = things[head]
        unusual = _is_unusual(own)
        announced = _is_announced(words, start, stop, unusual) and not (head > place and its_kind == "attribute")
        follows = bool(place) and found[-1] and _joins(words[things[place - 1][0][1] : start])
        is_given = what is not None and stop - start > 1 and bool(terms.values[what])  # "tom hanks"
        beside = (named or head > place) and opens(words, start)
        beside = beside and (named or unusual or (its_kind == OPEN and is_name(" ".join(words[first:end]))))
        # Of several words the frame is a mean, and the last one is told.
        sure = named or sum(frames[head]) >= _TOLD
        found.append(sure and (announced or follows or is_given or beside) and not is_empty(own, what))
    return found


def as_read(words: tuple[str, ...], things: Sequence[Thing]) -> tuple[str, ...]:
    """Return words for the reader, who knows some from other uses: "from" as "away from", "light" as "go light on".

    A word before an attribute that no wording has, as in "an edgy comedy", becomes one that the reader knows.
    """
    starts, ends = {span[0] for span, *_ in things}, {span[1] for span, *_ in things}
    attributes = {span[0] for span, kind, _ in things if kind == "attribute"}
    read = list(words)
    for (start, stop), kind, _ in things:
        if kind == OPEN and stop in attributes and opens(words, start) and _is_unusual(words[start:stop]):
            read[start:stop] = ["good"] * (stop - start)
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        if word == "from" and place and (place in ends or words[place - 1] in _THINGS):
            read[place] = "with"
        elif word == "light" and place + 1 in starts:
            read[place] = "good"
        elif word == "similar" and after == "to":
            read[place : place + 2] = ["such", "as"]
    return tuple(read)


def opens(words: Sequence[str], place: int) -> bool:
    """Return True if words for a thing may begin at a place, so that the first of them describe it."""
    return place == 0 or words[place - 1] in _LEADS


def announces_title(thing: Thing, things: Sequence[Thing]) -> bool:
    """Return True for words right before a title, such as "similar" in "similar to Heat"."""
    return any(kind == "title" and 0 <= start - thing[0][1] < _CUE for (start, _), kind, _ in things)


def is_empty(own: Sequence[str], term: int | None) -> bool:
    """Return True for words such as "good", and for words that no item has of wordings that ask nothing."""
    praise, empty = empty_words()
    return all(word in praise or (term is None and word in empty) for word in own)


def _is_unusual(own: Sequence[str]) -> bool:
    return usual_words().isdisjoint(own)


def _last_beside(things: Sequence[Thing], place: int) -> int:
    """Return the last of the things that stand beside each other from a place on."""
    while place + 1 < len(things) and things[place][0][1] == things[place + 1][0][0]:
        place += 1
    return place


def _is_announced(words: Sequence[str], place: int, stop: int, unusual: bool) -> bool:
    """Return True if what stands right before a place announces what is asked for: "something", "not too"."""
    before = [word for word in words[:place] if word not in _ARTICLES][-2:]
    if not before:
        return False
    too = before[-1] == "too" and before[0] in _NOT | {"nothing"}
    nothing = before[-1] == "nothing" and not (stop < len(words) and words[stop].isalpha() and words[stop] not in _ENDS)
    return before[-1] in _BEFORE_IT or too or nothing or (unusual and before[-1] in _NOT)


def _joins(between: Sequence[str]) -> bool:
    return bool(between) and all(word in _JOINTS for word in between)
