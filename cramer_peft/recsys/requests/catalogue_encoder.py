"""A request encoder that describes a request by attributes of the catalogue's items and by words near them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft import RequestMaskModel
from cramer_peft.encoders import (
    LONGEST,
    WORD,
    CachedEncoder,
    Reading,
    RequestEncoder,
    RequestReader,
    WordLlamaEncoder,
    runs,
)
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import MAX_CATALOGUE_CELLS, Catalogue
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.item_features import TEXT_WIDTH, item_features

TEXT_ENCODER = "catalogue-text"  # by texts alone, which mean the same in every catalogue
WHITENED, RAW = "catalogue-2", "catalogue"  # names in files of earlier versions: by whitened features, and before
_TEMPERATURE = 0.05  # for similarities of words, which lie in -1 … 1
_TITLE_WORD = re.compile(r"[^\W\d_]{4,}")
_TITLE_WEIGHT = 0.8  # a word of a title says less than an attribute
_LEAST = 0.4  # a phrase less near to every attribute is a mistake of the reader
_SURELY_NOTHING = 0.9
_BLOCK = 2048  # items per block


class _Wanted(Protocol):
    @property
    def wanted(self) -> bool | None: ...


_Part = TypeVar("_Part", bound=_Wanted)
_Name = TypeVar("_Name")


@dataclass(frozen=True)
class RequestPhrase:
    """A phrase that a request asks for (``wanted``) or against, and the certainty of that, from 0 to 1."""

    text: str
    wanted: bool
    weight: float


class CatalogueEncoder:
    """Encodes a request as the mean description of the items that it wants, and of those that it does not want.

    ``features`` describe the items, (items, width) float32: see :func:`item_features`. A request's vector is the mean
    of their attributes' part over the items whose words are nearest to what is wanted, then that for what is unwanted;
    zeros if nothing is asked. So a request can name any attribute, or any word near one by its static vector: "funny"
    for comedy.

    ``embeddings`` are (items, width) float, or None. A DataError is raised unless they are one finite row per item.
    ``whiten=False`` gives the features of earlier versions, for adapters that were trained with them. Items that were
    added to the catalogue have features, too, but change neither a request's vector nor the features of the others.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        embeddings: Tensor | None,
        reader: RequestReader | None = None,
        whiten: bool = True,
    ) -> None:
        if embeddings is not None and (len(embeddings) != len(catalogue) or not bool(torch.isfinite(embeddings).all())):
            raise DataError(
                f"embeddings: found shape {tuple(embeddings.shape)}, expected one finite row for each of the "
                f"{len(catalogue)} items of the catalogue."
            )
        self.reader = reader or RequestReader()
        self.text_encoder: RequestEncoder = WordLlamaEncoder()
        self._vectors = self.reader.vectors
        self._attributes = {tuple(WORD.findall(phrase(name))): phrase(name) for name in catalogue.attributes}
        self._lengths = lengths_by_first(self._attributes)
        self._described = catalogue.described
        self._words, self._places, self._weights = self._index(catalogue)
        own = None if embeddings is None else embeddings.detach().float().cpu()
        self._own, self._whiten = own, whiten
        self.embeddings = None if own is None else _standard(own, self._described)
        width = TEXT_WIDTH + (0 if whiten or own is None else own.shape[1])
        self.name = RAW if not whiten else TEXT_ENCODER if own is None else WHITENED
        self.sides = {"wanted": width, "unwanted": width} if whiten else {}
        self.dim = 2 * width
        self._middles: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @cached_property
    def features(self) -> Tensor:
        """The items' features, (items, width) float32."""
        if self._whiten:
            return item_features(self._own, *self._attribute_and_title_means(), self._described)
        return torch.cat([part for part in (self.embeddings, self.texts) if part is not None], -1)

    @property
    def _sides(self) -> Tensor:
        """What a request is compared with: what items are, their attributes, the first part of the features."""
        return self.features[:, :TEXT_WIDTH] if self._whiten else self.features

    @cached_property
    def texts(self) -> Tensor:
        """The mean vector of each item's words, (items, TEXT_WIDTH), not whitened: made-up sets are drawn by it."""
        return _standard(self._means(self._places), self._described)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32; zeros for a text that asks nothing."""
        if not texts:
            return torch.empty(0, self.dim)
        return self._vectors_of([self._phrases(reading) for reading in self.reader.read(texts, self._spans)])

    def understand(self, text: str) -> list[RequestPhrase]:
        """Return the phrases that a text asks for and against."""
        return self._phrases(self.reader.read([text], self._spans)[0])

    def concepts(self, sets: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
        """Return the vectors (requests, dim) of requests for and against sets of items.

        ``sets`` are what is wanted and what is not, (items,) bool each, not empty, or None.
        """
        slots = torch.zeros(len(sets), 2, self._sides.shape[1])
        for row, own in enumerate(sets):
            for place, members in enumerate(own):
                if members is not None:
                    slots[row, place] = self._sides[members].mean(0)
        return slots.flatten(1)

    def _vectors_of(self, requests: Sequence[Sequence[RequestPhrase]]) -> Tensor:
        """Return for each request the weighted means for what is wanted and for what is unwanted, (requests, dim)."""
        parts = [
            (2 * row + (not part.wanted), part.weight, self._middle(part.text))
            for row, phrases in enumerate(requests)
            for part in phrases
        ]
        slots, total = torch.zeros(2 * len(requests), self._sides.shape[1]), torch.zeros(2 * len(requests), 1)
        if parts:
            slot, weight, middle = zip(*parts, strict=True)
            weights, places = torch.tensor(weight)[:, None], torch.tensor(slot)
            slots.index_add_(0, places, weights * torch.stack(middle))
            total.index_add_(0, places, weights)
        return (slots / total.clamp(min=1)).view(len(requests), -1)

    def _phrases(self, reading: Reading) -> list[RequestPhrase]:
        """Return the attributes that are named, whose side the words around them tell, then the other phrases read."""
        found: list[RequestPhrase] = []
        words, wanted, unwanted = list(reading.words), reading.wanted.tolist(), reading.unwanted.tolist()
        for start, stop, text in reversed(self._named(reading.words)):  # from the end, because words are deleted
            sides = [sum(side[start:stop]) / (stop - start) for side in (wanted, unwanted)]
            for column in (words, wanted, unwanted):
                del column[start:stop]
            if sum(sides) > 1 - _SURELY_NOTHING:
                found.insert(0, RequestPhrase(text, sides[0] > sides[1], 1.0))
        for text, is_wanted in runs(words, wanted, unwanted):
            weight = self._nearness(text)
            if weight >= _LEAST:
                found.append(RequestPhrase(text, is_wanted, weight))
        return without_contradictions(found, lambda part: part.text)

    def _spans(self, words: Sequence[str]) -> list[tuple[int, int]]:
        return [(start, stop) for start, stop, _ in self._named(words)]

    def _named(self, words: Sequence[str]) -> list[tuple[int, int, str]]:
        """Find attributes named word for word, the longest names first: start, stop, name."""
        return list(named_by_first(words, self._lengths, lambda own, _: self._attributes.get(own)))

    def _nearness(self, text: str) -> float:
        """Return the similarity of a phrase to the nearest attribute, from 0 to 1."""
        return float((self._words[: len(self._attributes)] @ self._phrase_vector(text)).max().clamp(0, 1))

    def _phrase_vector(self, text: str) -> Tensor:
        return functional.normalize(self._vectors(WORD.findall(text)).mean(0), dim=0)

    def _phrase_vectors(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of many phrases, (texts, width): zeros for a blank one."""
        words = [WORD.findall(text) for text in texts]
        numbers = {word: place for place, word in enumerate(dict.fromkeys(word for own in words for word in own))}
        rows = torch.tensor([numbers[word] for own in words for word in own], dtype=torch.long)
        counts = torch.tensor([len(own) for own in words], dtype=torch.long)
        return functional.normalize(_means_of_rows(self._vectors(list(numbers)), rows, counts), dim=1)

    def _middle(self, text: str) -> Tensor:
        with self._lock:
            if len(self._middles) > 10_000:
                self._middles.clear()
            if text not in self._middles:
                known, described = self._described_words, self._described
                similarity = (self._words[:known] @ self._phrase_vector(text)) * self._weights[:known]
                blocks = self._places[:described].split(_BLOCK)
                best = torch.cat([similarity[block].max(1).values for block in blocks])
                self._middles[text] = (best / _TEMPERATURE).softmax(0) @ self._sides[:described]
            middle: Tensor = self._middles[text]
            return middle

    def _index(self, catalogue: Catalogue) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors of the catalogue's words, each item's words as row numbers, and the words' weights.

        The words of the items that describe requests come first: items that are added later move no number.
        """
        names = {name: phrase(name) for name in catalogue.attributes}
        numbers = {name: place for place, name in enumerate(dict.fromkeys(self._attributes.values()))}
        places: list[list[int]] = []
        blank = 0
        for item, title in enumerate(catalogue.titles):
            if item == self._described:
                blank = numbers.setdefault("", len(numbers))
                self._described_words = len(numbers)
            own = [*map(names.__getitem__, catalogue.attribute_names(item)), *_TITLE_WORD.findall(title.lower())]
            places.append([numbers.setdefault(word, len(numbers)) for word in dict.fromkeys(own)])
        if self._described == len(catalogue):
            blank = numbers.setdefault("", len(numbers))
            self._described_words = len(numbers)
        places = [row or [blank] for row in places]  # the blank is for an item without a word
        longest = max(map(len, places))
        if longest * len(places) > MAX_CATALOGUE_CELLS:
            title = catalogue.titles[max(range(len(places)), key=lambda item: len(places[item]))]
            raise DataError(
                f"titles: {title[:60]!r} … has {longest} words, too many beside {len(places)} items: expected at most "
                f"{MAX_CATALOGUE_CELLS // len(places)} words. Shorten the title."
            )
        # padding by repetition changes no maximum over an item's words
        padded = torch.tensor([row + row[-1:] * (longest - len(row)) for row in places])
        weights = torch.full((len(numbers),), _TITLE_WEIGHT)
        weights[: len(self._attributes)] = 1.0
        return self._phrase_vectors(list(numbers)), padded, weights

    def _means(self, places: Tensor) -> Tensor:
        """Return the mean of each item's distinct words' vectors, cut to ``TEXT_WIDTH``, (items, TEXT_WIDTH).

        ``places`` are the words' numbers, (items, n) int64, padded by repetition; -1 for none.
        """
        ordered = places.sort(1).values
        first = ordered >= 0
        first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        return _means_of_rows(self._words[:, :TEXT_WIDTH], ordered[first], first.sum(1))

    def _attribute_and_title_means(self) -> tuple[Tensor, Tensor]:
        is_attribute = self._places < len(self._attributes)
        return tuple(self._means(self._places.masked_fill(own, -1)) for own in (~is_attribute, is_attribute))  # type: ignore[return-value]


def _means_of_rows(table: Tensor, numbers: Tensor, counts: Tensor) -> Tensor:
    """Return means of rows of a table, (groups, width); zeros for an empty group.

    ``numbers`` are the rows of all groups, one group after the other, and ``counts`` how many each has, int64. Groups
    of one size are taken together, so that a mean has the bits of ``table[own].mean(0)``.
    """
    means = torch.zeros(len(counts), table.shape[1])
    starts = counts.cumsum(0) - counts
    for count in counts.unique().tolist():
        for groups in (counts == count).nonzero()[:, 0].split(_BLOCK) if count else ():
            means[groups] = table[numbers[starts[groups, None] + torch.arange(count)]].mean(1)
    return means


def lengths_by_first(names: Iterable[tuple[str, ...]]) -> dict[str, list[int]]:
    """Return first word → the numbers of words of the names that begin with it, descending.

    Names longer than what is read of a request are left out: none can be found there.
    """
    found: dict[str, set[int]] = {}
    for words in names:
        if 1 <= len(words) <= LONGEST:
            found.setdefault(words[0], set()).add(len(words))
    return {word: sorted(lengths, reverse=True) for word, lengths in found.items()}


def named_by_first(
    words: Sequence[str], lengths: Mapping[str, Sequence[int]], look: Callable[[tuple[str, ...], int], _Name | None]
) -> Iterator[tuple[int, int, _Name]]:
    """Yield the start, the stop and the value of each name among words, the longest first; no two share a word.

    Args:
        words: The words.
        lengths: First word → the numbers of words of the names that begin with it, as :func:`lengths_by_first`.
        look: Returns the value of some words that begin at a place; None: they are no name there.
    """
    place = 0
    while place < len(words):
        step = 1
        for length in lengths.get(words[place], ()):
            own = tuple(words[place : place + length])
            found = look(own, place) if len(own) == length else None
            if found is not None:
                yield place, place + length, found
                step = length
                break
        place += step


def without_contradictions(parts: Sequence[_Part], name: Callable[[_Part], str]) -> list[_Part]:
    """Drop the parts of a request that are asked both for and against, by their names: they cancel."""
    wanted, unwanted = ({name(part) for part in parts if part.wanted is side} for side in (True, False))
    return [part for part in parts if name(part) not in wanted & unwanted]


def _standard(rows: Tensor, described: int) -> Tensor:
    """Return the rows centred and scaled so that the first ``described`` have mean 0 and a mean length of 1."""
    centred = rows - rows[:described].mean(0)
    standard: Tensor = centred / centred[:described].norm(dim=-1).mean().clamp(min=1e-12)
    return standard


def text_encoder(encoder: Any) -> RequestEncoder:
    """Return the encoder for texts of items: a request encoder itself, unless it reads requests only."""
    inner = without_cache(encoder)
    found: RequestEncoder = inner.text_encoder if isinstance(inner, CatalogueEncoder) else encoder
    return found


def without_cache(encoder: Any) -> Any:
    """Return the encoder behind its caches; a handle adds a cache of its own."""
    while isinstance(encoder, CachedEncoder):
        encoder = encoder.encoder
    return encoder


def active_encoder(masks: RequestMaskModel) -> Any:
    """Return the encoder of the active adapter, behind its caches; None if it has none."""
    return None if masks.adapter().config.encoder is None else without_cache(masks.encoder())


def item_embeddings(backbone: Any) -> Tensor | None:
    """Return a backbone's embeddings of the items 0 … num_items - 1, (items, width); None if it shows none."""
    own = getattr(backbone, "item_vectors", None)
    if isinstance(own, Tensor):
        return own
    find = getattr(backbone, "get_input_embeddings", None)
    table = find() if callable(find) else getattr(backbone, "items", None)
    weight = getattr(table, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(weight) <= backbone.num_items:
        return None
    return weight.detach()[1 : backbone.num_items + 1]  # row 0 is the padding
