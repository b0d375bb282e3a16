"""An encoder that says a request in terms of a catalogue: where the items are that its words name."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.encoders import RequestEncoder, WordLlamaEncoder
from cramer_peft.encoders.reader import WORD, Reading, RequestReader, runs
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attributes import phrase

TEXT_WIDTH = 64  # wordllama's vectors are trained to be cut to their first 64 numbers
_TEMPERATURE = 0.05  # of the similarity between words, from -1 to 1
_TITLE_WORD = re.compile(r"[^\W\d_]{4,}")
_TITLE_WEIGHT = 0.8  # a word of a title says less than an attribute
_LEAST = 0.4  # nearness below which a phrase is taken for a mistake of the reader
_SURELY_NOTHING = 0.9
_BLOCK = 2048  # items at a time


@dataclass(frozen=True)
class Asked:
    """A phrase of a request.

    Attributes:
        text: Its words.
        wanted: Whether it is asked for; else it is asked against.
        weight: How surely, from 0 to 1.
    """

    text: str
    wanted: bool
    weight: float


class CatalogueEncoder:
    """Reads what is wanted and unwanted, and gives the middle of the items whose words are nearest to each.

    An item is described by its embedding in the backbone beside the text of its attributes and title. A request's
    vector is the mean description of the items that fit what is wanted, beside that of what is unwanted; zeros where
    nothing is asked. Any attribute can be asked for, whether or not a generator was taught it, and any word near one by
    its static vector: "funny" where there is comedy.

    Args:
        catalogue: The items.
        embeddings: Of the items in the backbone, (items, width) float, or None where it has none.
        reader: Of requests; None: a new one.

    Raises:
        DataError: If there is not one embedding for each item, or one is not finite.
        MissingExtraError: If ``wordllama`` is not installed (extra ``wordllama``).
    """

    name = "catalogue"

    def __init__(self, catalogue: Catalogue, embeddings: Tensor | None, reader: RequestReader | None = None) -> None:
        if embeddings is not None and (len(embeddings) != len(catalogue) or not bool(torch.isfinite(embeddings).all())):
            raise DataError(
                f"embeddings: found shape {tuple(embeddings.shape)}, expected one finite row for each of the "
                f"{len(catalogue)} items of the catalogue."
            )
        self.reader = reader or RequestReader()
        self.text_encoder: RequestEncoder = WordLlamaEncoder()
        self._vectors = self.reader.vectors
        self._attributes = {tuple(WORD.findall(phrase(name))): phrase(name) for name in catalogue.attributes}
        self._lengths = _lengths(self._attributes)
        self._words, self._places, self._weights = self._index(catalogue)
        parts = [] if embeddings is None else [_standard(embeddings.detach().float().cpu())]
        self.features = torch.cat([*parts, _standard(self._texts())], -1)
        self.dim = 2 * self.features.shape[1]
        self._middles: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of ``texts``, (texts, dim) float32; zeros where nothing is asked."""
        if not texts:
            return torch.empty(0, self.dim)
        return self._vectors_of([self._asked(reading) for reading in self.reader.read(texts, self._spans)])

    def understand(self, text: str) -> list[Asked]:
        """What a text asks, phrase by phrase."""
        return self._asked(self.reader.read([text], self._spans)[0])

    def concept(self, wanted: Tensor | None, unwanted: Tensor | None) -> Tensor:
        """The vector of a request for and against sets of items, (dim,), as if its words named them.

        Args:
            wanted: (items,) bool, with an item or more; None: nothing is wanted.
            unwanted: Likewise.
        """
        slots = torch.zeros(2, self.features.shape[1])
        for place, members in enumerate((wanted, unwanted)):
            if members is not None:
                slots[place] = self.features[members].mean(0)
        return slots.flatten()

    def _vectors_of(self, requests: Sequence[Sequence[Asked]]) -> Tensor:
        """For each request the weighted middles of what is wanted, beside those of what is unwanted."""
        parts = [
            (2 * row + (not part.wanted), part.weight, self._middle(part.text))
            for row, asked in enumerate(requests)
            for part in asked
        ]
        slots, total = torch.zeros(2 * len(requests), self.features.shape[1]), torch.zeros(2 * len(requests), 1)
        if parts:
            slot, weight, middle = zip(*parts, strict=True)
            weights, places = torch.tensor(weight)[:, None], torch.tensor(slot)
            slots.index_add_(0, places, weights * torch.stack(middle))
            total.index_add_(0, places, weights)
        return (slots / total.clamp(min=1)).view(len(requests), -1)

    def _asked(self, reading: Reading) -> list[Asked]:
        """Names of attributes first, whose side is taken from the words around; then what else was read."""
        found: list[Asked] = []
        words, wanted, unwanted = list(reading.words), reading.wanted.tolist(), reading.unwanted.tolist()
        for start, stop, text in reversed(self._named(reading.words)):  # from the end, so that places stay as they are
            sides = [sum(side[start:stop]) / (stop - start) for side in (wanted, unwanted)]
            for column in (words, wanted, unwanted):
                del column[start:stop]
            if sum(sides) > 1 - _SURELY_NOTHING:
                found.insert(0, Asked(text, sides[0] > sides[1], 1.0))
        for text, is_wanted in runs(words, wanted, unwanted):
            weight = self._nearness(text)
            if weight >= _LEAST:
                found.append(Asked(text, is_wanted, weight))
        return _without_contradictions(found)

    def _spans(self, words: Sequence[str]) -> list[tuple[int, int]]:
        return [(start, stop) for start, stop, _ in self._named(words)]

    def _named(self, words: Sequence[str]) -> list[tuple[int, int, str]]:
        """Where attributes are named word for word, the longest names first: start, stop, name."""
        found: list[tuple[int, int, str]] = []
        place = 0
        while place < len(words):
            for length in self._lengths.get(words[place], ()):
                name = self._attributes.get(tuple(words[place : place + length]))
                if name is not None:
                    found.append((place, place + length, name))
                    place += length - 1
                    break
            place += 1
        return found

    def _nearness(self, text: str) -> float:
        """How near a phrase is to the nearest attribute, from 0 to 1."""
        return float((self._words[: len(self._attributes)] @ self._phrase_vector(text)).max().clamp(0, 1))

    def _phrase_vector(self, text: str) -> Tensor:
        return functional.normalize(self._vectors(WORD.findall(text)).mean(0), dim=0)

    def _middle(self, text: str) -> Tensor:
        with self._lock:
            if len(self._middles) > 10_000:
                self._middles.clear()
            if text not in self._middles:
                similarity = (self._words @ self._phrase_vector(text)) * self._weights
                best = torch.cat([similarity[block].max(1).values for block in self._places.split(_BLOCK)])
                self._middles[text] = (best / _TEMPERATURE).softmax(0) @ self.features
            middle: Tensor = self._middles[text]
            return middle

    def _index(self, catalogue: Catalogue) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of the catalogue's words, which of them each item has, padded by repeating, and their weights."""
        own = [[phrase(name) for name in catalogue.attribute_names(item)] for item in range(len(catalogue))]
        numbers = {name: place for place, name in enumerate(dict.fromkeys(self._attributes.values()))}
        places: list[list[int]] = []
        for item, names in enumerate(own):
            words = _TITLE_WORD.findall(catalogue.titles[item].lower())
            places.append([numbers.setdefault(word, len(numbers)) for word in dict.fromkeys([*names, *words])])
        blank = numbers.setdefault("", len(numbers))  # for an item without a word
        places = [row or [blank] for row in places]
        longest = max(map(len, places))
        padded = torch.tensor([row + row[-1:] * (longest - len(row)) for row in places])
        vectors = torch.stack(
            [self._phrase_vector(word) if word else torch.zeros(self._vectors.dim) for word in numbers]
        )
        weights = torch.full((len(numbers),), _TITLE_WEIGHT)
        weights[: len(self._attributes)] = 1.0
        return vectors, padded, weights

    def _texts(self) -> Tensor:
        """Mean vector of each item's words, cut to its first numbers."""
        cut = self._words[:, :TEXT_WIDTH]
        rows = [cut[torch.tensor(sorted(set(row)))].mean(0) for row in self._places.tolist()]
        return torch.stack(rows)


def _lengths(names: Iterable[tuple[str, ...]]) -> dict[str, list[int]]:
    """How many words the names have that begin with a word, the most first."""
    found: dict[str, set[int]] = {}
    for words in filter(None, names):
        found.setdefault(words[0], set()).add(len(words))
    return {word: sorted(lengths, reverse=True) for word, lengths in found.items()}


def _without_contradictions(asked: list[Asked]) -> list[Asked]:
    """Without what is asked for and against at once, which comes to nothing."""
    wanted, unwanted = ({part.text for part in asked if part.wanted is side} for side in (True, False))
    return [part for part in asked if part.text not in wanted & unwanted]


def _standard(rows: Tensor) -> Tensor:
    """Centred, with a mean length of 1."""
    centred = rows - rows.mean(0)
    standard: Tensor = centred / centred.norm(dim=-1).mean().clamp(min=1e-12)
    return standard
