"""Wishes that a request tells by their form: what an item should do to a person, and whom it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cramer_peft.recsys.requests.fact import Span
from cramer_peft.recsys.requests.popularity_facts import spans_of, spoken
from cramer_peft.recsys.requests.wordings import empty_words, frame_words, usual_words

_END = r"(?= [^\w\s]|$| (?:tonight|today|again|please|out loud|a lot|so hard|and|but|or)\b)"
_DOES = re.compile(
    rf"(?<!\S)(?:makes?|making) (?:me|us|you) (?:feel )?(?P<what>\w+){_END}|"
    rf"(?:^|(?<=[,.;] ))(?:please )?(?P<verb>\w+) (?:me|us)(?: up)?{_END}|"
    r"(?<!\S)the (?P<more>\w+er) the better(?!\S)|"
    rf"(?<!\S)(?:want|need|like|love|mood) to (?:be )?(?P<to>\w+){_END}|(?<!\S)a good (?P<noun>cry|laugh|scare){_END}"
)
_WHO = r"(?:(?:my|our|the|some|small|young|little|whole) )*(?P<who>kids|children|family|toddlers|teenagers)"
_FOR = spoken(
    rf"(?:for|to \w+ with) {_WHO}{_END}|(?:my|our|the) (?P<they>kids|children|family|toddlers|teenagers) "
    r"(?:can|could|will|would|may|might) \w+"
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
            place = start + match.string[match.start() : match.start(group)].count(" ")
            found[place, place + 1] = not _DENIALS & set(words[max(0, start - 3) : start])
    return found
