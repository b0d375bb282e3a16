"""Words that say that a title follows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache


class Strength(IntEnum):
    """How much the words before say that a title follows."""

    NONE = 0
    WEAK = 1  # "I like …": a title or anything else
    STRONG = 2  # "similar to …": a thing that is named
    SURE = 3  # in quotes, with its year, or "a film called …"


@dataclass(frozen=True)
class Cue:
    """What the words before a title say of it."""

    strength: Strength
    wanted: bool | None = None


NO_CUE = Cue(Strength.NONE)
_BEFORE = 14  # number of words before that are looked at
_QUOTES = frozenset('"“”«»„`')
_SINGLE_QUOTES = frozenset("'‘’")
_NOUN = r"(?:movies?|films?|shows?|series|games?|books?|novels?|songs?|albums?)"
_FILLER = rf"(?:the|a|an|watching|playing|reading|original|first|classic|old|new|{_NOUN}|:)"
_PAST = r"(?:loved|liked|enjoyed|adored)"
_SPEAKER = (
    r"(?:i|we|you|they|he|she|people|kids|who|also|really|do|don't|didn't|to|always|just|never|still|not|both|all)"
)
_CUES = [
    (Strength.SURE, None, rf"(?:{_NOUN}|one|something|it's|is) (?:called|named|titled)"),
    (Strength.STRONG, False, r"(?:nothing like|not like|not at all like|less like|unlike|anything but|other than)"),
    (Strength.STRONG, False, r"(?:except for|except|apart from|instead of|tired of|sick of|bored (?:of|with|by))"),
    (Strength.STRONG, False, r"(?:fed up with|no more|hated|disliked|detested|(?:can't|cannot|couldn't) stand)"),
    (Strength.STRONG, True, r"(?:similar to|akin to|close to|comparable to|reminiscent of|along the lines of|such as)"),
    (Strength.STRONG, True, r"in the (?:spirit|style|vein|manner|mould|mold|tradition) of"),
    (Strength.STRONG, True, r"(?:remind(?:s|ed)? (?:me|us|you) of|as in|more of|more like|fans? of|inspired by)"),
    (Strength.STRONG, True, r"(?:as \w+ as|crazy about|obsessed with|resembl(?:es?|ing)|the likes of)"),
    (Strength.STRONG, True, r"(?:mix|mixture|cross|combination|blend) (?:of|between)"),
    (Strength.STRONG, True, rf"(?:{_PAST}|fell in love with)"),
    (Strength.STRONG, True, r"favou?rites?(?: \w+)? (?:is|are|was|were|:|includes?)"),
    (Strength.STRONG, None, r"(?:seen|watched|rewatched|watching|rewatching|played|finished|saw|than)"),
    (Strength.WEAK, True, rf"{_SPEAKER} (?P<core>like)"),
    (Strength.WEAK, None, r"(?:would|'d|\w+'d|'ll|\w+'ll|might|feel|feels|looks?|sounds?) like"),
    (Strength.STRONG, True, r"(?:\S+ )?(?P<core>like)"),
    (Strength.WEAK, True, r"(?:likes?|loves?|enjoys?|enjoying|adores?|prefers?|recommend|want|watch|play)"),
    (Strength.WEAK, False, r"(?:hates?|dislikes?|avoid|skip|without)"),
    (Strength.WEAK, None, r"(?:not|no|read|bought|own)"),
]
_PATTERNS = [(strength, wanted, re.compile(rf"(?:^| ){cue}(?: {_FILLER})*$")) for strength, wanted, cue in _CUES]
# A cue, without what may stand between it and a title, ends with one of these words.
_ENDS = (
    "called named titled like but than for except from of with by in more hated disliked detested stand to as between "
    "loved liked enjoyed adored is are was were : include includes seen watched rewatched watching rewatching played "
    "finished saw likes love loves enjoy enjoys enjoying adore adores prefer prefers recommend want watch play hate "
    "hates dislike dislikes avoid skip without not no read bought own resemble resembles resembling"
)
_LAST_WORDS = frozenset(_ENDS.split())
_NO = r"(?:^| )(?:not|never|no|neither|nor|nothing|hardly|cannot|without|\w+n't)"
_NEGATED, _NEGATED_FAR = re.compile(rf"{_NO}(?: \S+){{0,3}}$"), re.compile(rf"{_NO} ")
_CLAUSE = re.compile(r"(?:^| )(?:[^\w\s]|but|i|so|because|maybe|perhaps)(?: |$)")
_AFFIRMED = re.compile(r"(?:why not|not only|why don't)(?: \S+){0,3}$")
_WORDS_AFTER = (
    "and or but nor with without only except please from than then for on by as a so very again more less too "
    "also is was are were has had because though although when while that which who where if i i'm i've i'd we "
    "my you not no tonight today would did does instead plus better anymore style vibes just maybe especially "
    "yet & much at in it he she they there have can could do until before last this"
)
_AFTER = frozenset(_WORDS_AFTER.split())


def cue_before(words: Sequence[str], start: int) -> Cue:
    """Return what the words before a place say of a title that begins there."""
    before = words[max(0, start - _BEFORE) : start]
    quoted = bool(before) and before[-1] in _QUOTES | _SINGLE_QUOTES
    before = before[:-1] if quoted else before
    return _plain_cue(" ".join(before).replace("’", "'")) if _may_end_a_cue(before) else NO_CUE


@lru_cache(maxsize=10_000)
def _is_filler(word: str) -> bool:
    return re.fullmatch(_FILLER, word) is not None


def _may_end_a_cue(words: Sequence[str]) -> bool:
    """Return False where no cue can end: a cheap look, since the search takes long."""
    for word in reversed(words):
        if word in _LAST_WORDS:
            return True
        if not _is_filler(word):
            return False
    return False


@lru_cache(maxsize=50_000)  # wordings return
def _plain_cue(text: str) -> Cue:
    for strength, wanted, pattern in _PATTERNS:
        found = pattern.search(text)
        if found:
            start = found.start("core") if "core" in pattern.groupindex else found.start()
            return Cue(strength, _polarity(text[:start].rstrip()) if wanted else wanted)
    return NO_CUE


def _polarity(before: str) -> bool | None:
    """Return False if "not" stands right before a cue, None if it stands further before in the clause, else True."""
    clause = _CLAUSE.split(before)[-1]
    if _AFFIRMED.search(clause):
        return True
    return False if _NEGATED.search(clause) else None if _NEGATED_FAR.search(clause) else True


def is_noun(word: str) -> bool:
    """Return True for a word for a kind of thing, as in "the Batman movies"."""
    return re.fullmatch(_NOUN, word) is not None


def ends_there(words: Sequence[str], stop: int) -> bool:
    """Return True if a phrase can end before ``stop``: "Big" does in "like Big but …", not in "like big hats"."""
    return stop >= len(words) or words[stop] in _AFTER or not words[stop][0].isalnum()


def is_compared(words: Sequence[str], start: int, stop: int) -> bool:
    """Return True if the words after a title compare with it: "… meets Alien", or a request that begins "… but …"."""
    after = words[stop] if stop < len(words) else ""
    return after in {"meets", "vibes"} or (start == 0 and after == "but")


def is_quoted(words: Sequence[str], start: int, stop: int) -> bool:
    """Return True if quotes stand on both sides."""
    around = (words[start - 1], words[stop]) if start > 0 and stop < len(words) else ("", "")
    return _QUOTES.issuperset(around) or _SINGLE_QUOTES.issuperset(around)


def is_joined(words: Sequence[str], stop: int, start: int) -> bool:
    """Return True if only a comma, "and" or the like stand between the end of a title and the next."""
    between = words[stop:start]
    return 0 < len(between) <= 2 and all(word in {",", "and", "or", "nor", "&", "/", ";"} for word in between)
