"""The terms by which a catalogue's items can be asked for: attributes, values of its text columns, and words."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cramer_peft.encoders import WORD, one_form
from cramer_peft.errors import require
from cramer_peft.recsys.data.catalogue import SAID, Catalogue
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.wordings import frame_words

_SPLIT = re.compile(r"[|,;]")
_LONGEST_TERM = 4  # words
_MOST = 50_000  # terms, the most frequent ones
_TOO_MANY = 0.5  # a word of so many of the items tells them apart from no others
_FEWEST = 2  # items that share a word of a title or a description
_WORD_WEIGHT = 0.5  # a word of a text says less than a value that somebody gave to the item
_LONG_TEXT = 60  # words of a cell that are read
_STEMMING = threading.Lock()  # the stemmer keeps the word that it works on in itself


@dataclass(frozen=True)
class Terms:
    """Terms, and which items have them.

    Attributes:
        names: The terms in lower case.
        numbers: The number of each term, by the stems of its words.
        items: The item of each entry, (entries,) int64.
        columns: Its term, (entries,) int64.
        weights: How much the item has the term, (entries,) float32, about 1.
        values: True for terms that somebody gave to an item as they are, (terms,) bool: attributes, tags, requests.
        said: True for those of requests, (terms,) bool.
    """

    names: tuple[str, ...]
    numbers: dict[tuple[str, ...], int]
    items: Tensor
    columns: Tensor
    weights: Tensor
    values: Tensor
    said: Tensor

    def matrix(self, items: int) -> Tensor:
        """Return the weights as a sparse matrix, (terms, items) float32."""
        shape = (len(self.names), items)
        places = torch.stack([self.columns, self.items])
        return torch.sparse_coo_tensor(places, self.weights, shape, check_invariants=True).coalesce()


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    return require("snowballstemmer", extra="demo").stemmer("english")


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return the stem of a lower-case word, so that "robots" meets "robot"."""
    with _STEMMING:
        found: str = _stemmer().stemWord(word)
    return found


def stems(words: Iterable[str]) -> tuple[str, ...]:
    """Return the stems of words; punctuation is left out."""
    return tuple(stem(word) for word in words if word[0].isalnum())


def runs_of_content(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of each run of words that are neither punctuation nor common in requests of any kind."""
    start = None
    frame = frame_words()
    for place, word in enumerate([*words, ""]):
        content = bool(word) and word[0].isalnum() and word not in frame
        if content and start is None:
            start = place
        elif not content and start is not None:
            yield start, place
            start = None


def read_terms(catalogue: Catalogue, described: int) -> Terms:
    """Return the terms of a catalogue; the first ``described`` items decide which there are."""
    counts: list[dict[tuple[str, ...], float]] = []
    given: set[tuple[str, ...]] = set()
    said: set[tuple[str, ...]] = set()
    lists = [SAID, *(name for name, texts in catalogue.texts.items() if any("|" in text for text in texts))]
    names: dict[tuple[str, ...], Counter[str]] = {}
    for item in range(len(catalogue)):
        own: dict[tuple[str, ...], float] = {}
        for text, weight, source in _terms_of(catalogue, item, lists):
            is_value = source is not None
            key = stems(WORD.findall(text))[:_LONGEST_TERM]
            if not key:
                continue
            own[key] = own.get(key, 0.0) + weight if is_value else max(own.get(key, 0.0), weight)
            if item < described:
                names.setdefault(key, Counter())[text] += 1
                if is_value:
                    given.add(key)
                if source == SAID:
                    said.add(key)
        counts.append(own)
    kept = _kept(counts[:described], given)
    entries = [
        (item, kept[key], weight) for item, own in enumerate(counts) for key, weight in own.items() if key in kept
    ]
    items, columns, weights = zip(*entries, strict=True) if entries else ((), (), ())
    return Terms(
        tuple(names[key].most_common(1)[0][0] for key in kept),
        kept,
        torch.tensor(items, dtype=torch.long),
        torch.tensor(columns, dtype=torch.long),
        torch.log1p(torch.tensor(weights, dtype=torch.float32)) / torch.log(torch.tensor(2.0)),
        torch.tensor([key in given for key in kept], dtype=torch.bool),
        torch.tensor([key in said for key in kept], dtype=torch.bool),
    )


def _kept(counts: Sequence[dict[tuple[str, ...], float]], given: set[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    having = Counter(key for own in counts for key in own)
    most = _TOO_MANY * len(counts)
    kept = [key for key, count in having.most_common(_MOST) if key in given or _FEWEST <= count <= most]
    return {key: place for place, key in enumerate(sorted(kept))}


def _terms_of(catalogue: Catalogue, item: int, lists: Sequence[str]) -> Iterator[tuple[str, float, str | None]]:
    """Yield each term of an item, its weight, and where somebody gave it to the item as it is; None: a word of a text.

    ``lists`` are the text columns that hold several values in a cell.
    """
    for name in catalogue.attribute_names(item):
        yield phrase(name), 1.0, "attributes"
    texts = [catalogue.titles[item]]
    for column, values in catalogue.texts.items():
        if column in lists:
            yield from ((term, 1.0, column) for part in values[item].split("|") for term in _values(part))
        else:
            texts.append(values[item])
    for text in texts:
        words = WORD.findall(one_form(text).lower())[:_LONG_TEXT]
        frame = frame_words()
        for word in words:
            if len(word) > 2 and word[0].isalpha() and word not in frame:
                yield word, _WORD_WEIGHT, None


def _values(text: str) -> Iterator[str]:
    """Yield the phrases of a value or a request: short ones as they are, of others the words that say something."""
    for part in _SPLIT.split(one_form(text).lower()):
        words = WORD.findall(part)
        spans = [(0, len(words))] if 0 < len(words) <= _LONGEST_TERM else list(runs_of_content(words))
        for start, stop in spans:
            yield " ".join(words[start:stop])
            if stop - start > 1:
                yield from (word for word in words[start:stop] if word not in frame_words() and word[0].isalpha())
