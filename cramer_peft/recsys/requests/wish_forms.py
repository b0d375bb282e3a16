"""Wishes and feelings that a request tells by its form: what an item should do to a person, and whom it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cramer_peft.recsys.requests.fact import Span
from cramer_peft.recsys.requests.popularity_facts import spans_of, spoken
from cramer_peft.recsys.requests.wordings import empty_words, frame_words, usual_words

_END = r"(?= [^\w\s]|$| (?:tonight|today|again|please|out loud|a lot|so hard|to death|and|but|or)\b)"
_DOES = re.compile(
    rf"(?<!\S)(?:makes?|making) (?:me|us|you) (?:feel )?(?P<what>\w+){_END}|"
    rf"(?:^|(?<=[,.;] ))(?:please )?(?P<verb>\w+) (?:me|us)(?: up)?{_END}|"
    r"(?<!\S)the (?P<more>\w+er) the better(?!\S)|"
    rf"(?<!\S)(?:want|need|like|love|mood) to (?:be )?(?P<to>\w+){_END}|"
    rf"(?<!\S)feel like (?P<ing>\w+ing){_END}|(?<!\S)a good (?P<noun>cry|laugh|scare){_END}|"
    r"(?<!\S)in an? (?P<mood>\w+) mood(?!\S)"
)
_WHO = r"(?:(?:my|our|the|some|small|young|little|whole) )*(?P<who>kids|children|family|toddlers|teenagers)"
_FOR = spoken(
    rf"(?:for|to \w+ with) {_WHO}{_END}|(?:my|our|the) (?P<they>kids|children|family|toddlers|teenagers) "
    r"(?:can|could|will|would|may|might) \w+"
)
_FEELING = r"(?:(?:so|very|really|pretty|rather|quite|too|just|all|a bit|a little|kind of|feeling) )*"
_FEELS = spoken(
    rf"(?:(?:i|we) feel|i'm|im|i am|we're|we are|feeling) {_FEELING}(?P<state>\w+)(?: and (?P<other>\w+))?{_END}"
)
_MOST = 40  # wordings that have a word which tells what an item should do
_DENIALS = frozenset({"not", "no", "nothing", "never", "without", "don't", "doesn't", "won't", "isn't"})


def wishes_by_form(words: Sequence[str]) -> dict[Span, bool]:
    """Return the words of such wishes, and whether each is wanted: "cry" in "something that makes me cry"."""
    found: dict[Span, bool] = {}
    for pattern in (_DOES, _FOR):
        for start, _, match in spans_of(pattern, words):
            group = match.lastgroup
            if group is None:
                continue
            if pattern is _DOES and (match[group] in empty_words()[1] or match[group] in usual_words(_MOST)):
                continue
            if group == "verb" and match[group] in frame_words() and not match[0].endswith(" up"):
                continue
            found[_place(start, match, group)] = not _DENIALS & set(words[max(0, start - 3) : start])
    return found


def feelings_by_form(words: Sequence[str]) -> list[Span]:
    """Return the words that tell how a person feels: "sad" in "I'm sad, cheer me up".

    They ask for nothing beside a wish; alone they may be one, as "I feel adventurous".
    """
    found = spans_of(_FEELS, words)
    return [_place(start, match, group) for start, _, match in found for group in ("state", "other") if match[group]]


def _place(start: int, match: re.Match[str], group: str) -> Span:
    """Return the place of the one word of a group, among words of which ``start`` is the first of the match."""
    place = start + match.string[match.start() : match.start(group)].count(" ")
    return place, place + 1
