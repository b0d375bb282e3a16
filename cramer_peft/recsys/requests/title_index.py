"""An index of a catalogue's titles: exact names, beginnings, and names that are spelt nearly alike."""

from __future__ import annotations

import importlib.util
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from cramer_peft.recsys.data.catalogue import Catalogue, plain_text
from cramer_peft.recsys.requests.title_names import BEGINNING, FIRST_PART, FULL, digits, name_pieces, names_of
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES, common_words

Name = tuple[str, ...]
LONGEST_NAME = 16  # pieces of a name
FIRST_LETTERS = 4  # letters by which it is seen early that no name begins so
_NEAR_LENGTH = 8  # pieces of a name that is looked for by its spelling
_ALIKE = 86  # least likeness of a misspelt name to the right one, in 0 … 100
_ALIKE_WORDS = 74  # least likeness of a misspelt word to one of a name
_VERY_ALIKE = 90  # likeness of a misspelt name that is right whatever other names share its words
_SHORT, _LONG = 5, 9  # letters of a name in which one mistake is forgiven; of a word, one letter for another
_REMEMBERED = 10_000  # misspelt words whose neighbours are remembered
_NEAR_WORDS = 6  # words of titles that a misspelt word may stand for
_COMMON = 400  # names that share a word; of more, the word tells too little to look for them
_ASKING = 5  # wordings that have a word of asking
_TEXTS = 10_000  # items whose texts are looked at, evenly spread over the catalogue
_TEXT_LENGTH = 300  # characters of an item's texts in which common words are counted
_TEXT_ITEMS = 3  # items whose texts hold a word that is common


@dataclass(frozen=True)
class Found:
    """Items that a name means.

    Args:
        name: The name, as pieces.
        items: The items to whose titles it is most closely related.
        rank: How it is related to these, ``FULL`` … ``BEGINNING``.
        score: How much alike what was said is to it, in 0 … 1.
        kin: Items whose titles it begins, before a colon or a dash.
    """

    name: Name
    items: tuple[int, ...]
    rank: int
    score: float = 1.0
    kin: tuple[int, ...] = ()


class TitleIndex:
    """Finds items by what they are called.

    Args:
        catalogue: The items.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        items: dict[str, dict[int, int]] = defaultdict(dict)
        self._names: dict[Name, int] = {}
        for item, title in enumerate(catalogue.titles):
            for rank, name in names_of(title):
                if name and len(name) <= LONGEST_NAME:
                    ranks = items["".join(name)]
                    ranks[item] = min(rank, ranks.get(item, rank))
                    self._names[name] = min(rank, self._names.get(name, rank))
        self._items = dict(items)
        self._reach: dict[str, int] = {}  # first letters of names → letters of the longest
        for letters in self._items:
            self._reach[letters[:FIRST_LETTERS]] = max(len(letters), self._reach.get(letters[:FIRST_LETTERS], 0))
        self._sorted = sorted(self._names)
        self._spelt: dict[str, list[str]] = {}
        self._by_word: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(self._sorted):
            for piece in set(name):
                self._by_word[piece].append(place)

    @cached_property
    def attribute_names(self) -> frozenset[Name]:
        """The names of the attributes, and each word of them."""
        names = {name_pieces(plain_text(attribute)) for attribute in self._catalogue.attributes}
        return frozenset(names | {(piece,) for name in names for piece in name})

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Pieces that stand one behind the other in a name."""
        return frozenset(pair for name in self._names for pair in pairwise(name))

    @cached_property
    def asking(self) -> frozenset[str]:
        """Words by which people ask, whatever they ask for."""
        return common_words(TRAIN_TEMPLATES, name_pieces, _ASKING)

    @cached_property
    def _text_words(self) -> frozenset[str]:
        """Words that the texts of several items hold, of items without the word in their title."""
        counts: Counter[str] = Counter()
        step = 1 + len(self._catalogue) // _TEXTS
        for column in self._catalogue.texts.values():
            for title, text in zip(self._catalogue.titles[::step], column[::step], strict=True):
                if text:
                    counts.update(set(name_pieces(text[:_TEXT_LENGTH])).difference(name_pieces(title)))
        return frozenset(word for word, count in counts.items() if count >= _TEXT_ITEMS)

    def is_ordinary(self, piece: str) -> bool:
        """Return True if a word means something apart from a title: in requests, attributes or texts."""
        return piece in self.asking or (piece,) in self.attribute_names or piece in self._text_words

    def is_distinctive(self, name: Name) -> bool:
        """Return True if a name has a word that hardly any other name has, and that means nothing else."""
        series = tuple(piece for piece in name if not piece.isdigit())  # "toy story 2" is as distinctive as "toy story"
        return any(self._is_own(piece, series) for piece in series if not self.is_ordinary(piece))

    def _is_own(self, piece: str, name: Name) -> bool:
        places = self._by_word.get(piece, ())
        if len(piece) < 3 or len(places) > _COMMON:
            return False
        within = sum(_holds(self._sorted[place], name) for place in places)
        return 2 * within >= len(places)

    def reach(self, said: Sequence[str]) -> int:
        """Return how many letters of what was said may be a name that begins there; 0: none begins so."""
        first = "".join(said[:FIRST_LETTERS])[:FIRST_LETTERS]
        return max(self._reach.get(first[:count], 0) for count in range(1, FIRST_LETTERS + 1))

    def exact(self, name: Name) -> Found | None:
        """Return the items of a name; spaces do not count ("starwars")."""
        ranks = self._items.get("".join(name))
        if not ranks:
            return None
        best = min(ranks.values())
        items = tuple(item for item, rank in ranks.items() if rank == best)
        kin = tuple(item for item, rank in ranks.items() if best < rank == FIRST_PART)
        return Found(name, items, best, kin=kin)

    def beginning(self, name: Name) -> Found | None:
        """Return the items of the names that begin with some words: "harry potter"."""
        items: dict[int, None] = {}
        for place in range(bisect_left(self._sorted, name), len(self._sorted)):
            longer = self._sorted[place]
            if longer[: len(name)] != name or len(items) > _COMMON:
                break
            if self._names[longer] == FULL:
                items.update(dict.fromkeys(self._items["".join(longer)]))
        return Found(name, tuple(items), BEGINNING) if items else None

    def nearly(self, said: Sequence[str]) -> tuple[int, Found] | None:
        """Return the name that is spelt most like the first of some pieces, and how many these are.

        None where ``rapidfuzz`` is not installed: names are then met as they are written only.
        """
        best = max(self._spellings(tuple(said[:_NEAR_LENGTH])), default=None) if _has_rapidfuzz() else None
        found = self.exact(best[2]) if best else None
        return (best[1], replace(found, name=best[2], score=best[0] / 100)) if best and found else None

    def _spellings(self, said: Name) -> Iterator[tuple[float, int, Name]]:
        """Yield names that are spelt like the first pieces: the likeness, how many pieces, and the name."""
        from rapidfuzz import fuzz, process

        names = self._candidates(said)
        for length in range(1, len(said) + 1 if names else 1):
            text = " ".join(said[:length])
            for _, ratio, name in process.extract(text, names, scorer=fuzz.ratio, score_cutoff=_ALIKE_WORDS):
                score = _likeness(text, names[name], ratio)
                if score >= _ALIKE and self._is_misspelling(said[:length], name, score):
                    yield score, length, name

    def _candidates(self, said: Sequence[str]) -> dict[Name, str]:
        """Return names that share a rare word with some words, or a word that is spelt like one of them."""
        words = {near for piece in said for near in self._near_words(piece)}
        places: set[int] = set()
        for word in words:
            having = self._by_word.get(word, ())
            if len(having) <= _COMMON:
                places.update(having)
        return {self._sorted[place]: " ".join(self._sorted[place]) for place in sorted(places)}

    def _near_words(self, piece: str) -> list[str]:
        if piece in self._by_word or self._is_known(piece):
            return [piece]
        if len(piece) < 4 or piece.isdigit():
            return []
        if piece not in self._spelt:
            if len(self._spelt) > _REMEMBERED:
                self._spelt = {}
            self._spelt[piece] = self._words_spelt_like(piece)
        return self._spelt[piece]

    def _words_spelt_like(self, piece: str) -> list[str]:
        from rapidfuzz import fuzz, process

        among = [word for length in range(-2, 3) for word in self._by_length.get(len(piece) + length, ())]
        found = process.extract(piece, among, scorer=fuzz.ratio, score_cutoff=_ALIKE_WORDS, limit=_NEAR_WORDS)
        return [word for word, _, _ in found]

    @cached_property
    def _by_length(self) -> dict[int, list[str]]:
        by_length: dict[int, list[str]] = defaultdict(list)
        for word in self._by_word:
            by_length[len(word)].append(word)
        return by_length

    def _is_known(self, piece: str) -> bool:
        return piece in self._by_word or self.is_ordinary(piece)

    def _is_misspelling(self, said: Name, name: Name, score: float) -> bool:
        """Return True unless what was said is rather other words than a name written wrongly."""
        if digits(said) != digits(name) or said in self.attribute_names:
            return False
        if any(piece not in name and self._is_known(piece) for piece in (said[0], said[-1])):
            return False
        rare = [piece for piece in name if piece not in self.asking]
        if not any(self._is_own(piece, name) or len(name) > 2 or score >= _VERY_ALIKE for piece in rare):
            return False
        if len(said) == 1 and _has_another_letter(said[0], name[0]):
            return False
        other = [piece for piece in said if piece not in name]
        if len(said) < 3 and any(self._is_known(piece) or _inflects(piece, name) for piece in other):
            return False
        if len(said) >= 3 and any(self._is_known(piece) for piece in other) and score < _VERY_ALIKE:
            return False
        return bool(other) or len(said) > 1

    def nearer_attribute(self, name: Name, score: float) -> bool:
        """Return True if an attribute is spelt at least as much like some words as the title that was found."""
        from rapidfuzz import fuzz, process

        names = map(" ".join, self.attribute_names)
        return process.extractOne(" ".join(name), names, scorer=fuzz.ratio, score_cutoff=100 * score) is not None


def _has_rapidfuzz() -> bool:
    return importlib.util.find_spec("rapidfuzz") is not None


def _likeness(said: str, name: str, ratio: float) -> float:
    """Return how much alike two texts are, in 0 … 100; two letters that changed places count as one mistake."""
    from rapidfuzz.distance import OSA

    one_mistake = len(name) >= _SHORT and OSA.distance(said, name, score_cutoff=1) <= 1
    return max(ratio, 100 - 100 / len(name), float(_ALIKE)) if one_mistake else ratio


def _holds(longer: Sequence[str], part: Name) -> bool:
    return any(tuple(longer[start : start + len(part)]) == part for start in range(len(longer) - len(part) + 1))


def _has_another_letter(said: str, name: str) -> bool:
    """Return True if short words differ in a letter, as "previous" and "precious": both are words."""
    return len(said) == len(name) < _LONG and sorted(said) != sorted(name)


def _inflects(piece: str, name: Iterable[str]) -> bool:
    """Return True if a word is the plural of a word of a name, or the reverse."""
    forms: Collection[str] = {f"{word}{end}" for word in name for end in ("s", "es")} | {word[:-1] for word in name}
    return piece in forms
