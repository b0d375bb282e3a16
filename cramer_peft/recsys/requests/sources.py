"""Sources of requests: where the texts of a training come from, and what each of them wants."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Union

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.encoders import WORD
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import as_history
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, RequestGenerator, item_text
from cramer_peft.recsys.requests.wordings import common_words

STATED, ATTRIBUTES, CATALOGUE, HISTORY = "stated", "attributes", "catalogue", "history"
SOURCES = (STATED, ATTRIBUTES, CATALOGUE, HISTORY)
_LAST = 3  # items whose texts a request of the source "history" holds
_COMMON, _RARE = 0.4, 0.01  # shares of the items that have a phrase of the source "catalogue"
_FEWEST = 3  # items that have it, in a small catalogue
_LONGEST = 4  # words of a phrase
_CARRIERS = 0.02  # words that more of the wordings use, such as "the", say nothing on their own
_SHARPNESS = 4  # a similarity of .9 to the item met counts as .66, one of .5 as .06

# How well items are meant, (n,) float32 in -1 … 1, given their numbers, (n,) int64, or None for all.
Match = Callable[[Union[Tensor, None]], Tensor]


class Window(NamedTuple):
    """A part of one history: ``following[i]`` is the item that came after ``items[i]``."""

    items: Sequence[int]
    following: Sequence[int]


@dataclass(frozen=True)
class Drawn:
    """A text for one window, and what it wants.

    Attributes:
        text: The request.
        match: How well items match it, for the smallest edit. None: the next item is all that is known.
        position: The one place of the window whose next item was met with this text; negative: from the end.
        true: There is no such place, but every next item that matches is what the text asks for.
        window: A window that replaces the one given, for a source with histories of its own.
    """

    text: str
    match: AttributeRequest | Match | None = None
    position: int | None = None
    true: bool = False
    window: Window | None = None


class RequestSource(Protocol):
    """Gives windows of histories a text each; equal states of the ``random.Random`` give equal texts."""

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        """Return a text for a window, which has one next item or more."""


# The weight of each source, by name or as an object.
Weights = Union[Mapping[str, float], Mapping[Union[str, RequestSource], float]]


class AttributeSource:
    """Sentences about attributes: some true of a next item, some about random attributes, some that ask nothing.

    Args:
        catalogue: The items and their attributes.
        templates: Wordings, as for :class:`RequestGenerator`.
        allowed: The attributes that requests may name; None: all.
        by_frequency: Ask against an attribute as often as items have it.
        random_share: Share of requests about random attributes.
        empty_share: Share of requests that ask nothing.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        templates: Mapping[str, Sequence[str]],
        allowed: Sequence[str] | None = None,
        by_frequency: bool = True,
        random_share: float = 0.4,
        empty_share: float = 0.2,
    ) -> None:
        names = catalogue.attributes if allowed is None else tuple(allowed)
        having = dict(zip(catalogue.attributes, catalogue.item_attributes.sum(0).tolist(), strict=True))
        # plus one, because a weight must be positive
        weights = [1.0 + having[name] for name in names] if by_frequency else None
        self._requests = RequestGenerator(names, templates, weights)
        self._catalogue, self._allowed = catalogue, frozenset(names)
        self._random_share, self._empty_share = random_share, empty_share

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        kind = rng.random()
        if kind < self._empty_share:
            request, true = self._requests.empty(rng), False
        elif kind < self._empty_share + self._random_share:
            request, true = self._requests.counterfactual(rng), False
        else:
            target = window.following[rng.randrange(len(window.following))]
            names = [name for name in self._catalogue.attribute_names(target) if name in self._allowed]
            request, true = self._requests.truthful(names, rng), True
        return Drawn(request.text, request, true=true)


class EmptySource:
    """Sentences that ask for nothing in particular."""

    def __init__(self, wordings: Sequence[str]) -> None:
        self._wordings = tuple(wordings)

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        text = rng.choice(self._wordings)
        return Drawn(text, AttributeRequest(text))


class SaidSource:
    """Texts that somebody said: after which history, and which item they met then.

    The smallest edit goes to that item, and to others as far as they are like it.

    Args:
        said: (history, text, item) each: item numbers, oldest first, and an item number. Blank texts and those without
            a history are left out.
        items: Number of items in the catalogue.
        features: Descriptions of the items, (items, width); None: no item is like another.

    Raises:
        DataError: If an item is unknown, or no text is left.
    """

    def __init__(
        self, said: Iterable[tuple[Sequence[int] | Tensor, str, int]], items: int, features: Tensor | None = None
    ) -> None:
        # a tensor comes from a split, which was checked
        read = ((h if isinstance(h, Tensor) else as_history(h, items), text, int(item)) for h, text, item in said)
        self.said = [(history, text, item) for history, text, item in read if text.strip() and len(history)]
        if not self.said:
            raise DataError(
                "requests: no text with a history before it is left, expected (history, text, item) with one item or "
                "more in the history. Give others, or leave this source out."
            )
        wrong = next((item for _, _, item in self.said if not 0 <= item < items), None)
        if wrong is not None:
            raise DataError(f"requests: item index {wrong} is not in 0 … {items - 1}.")
        self._items = items
        self._features = None if features is None else functional.normalize(features.float(), dim=-1)

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        history, text, item = self.said[rng.randrange(len(self.said))]
        own = history.tolist()
        return Drawn(text, lambda items: self._like(item, items), position=-1, window=Window(own, [*own[1:], item]))

    def _like(self, item: int, items: Tensor | None) -> Tensor:
        """Return 1 for an item, and for others the similarity to it, sharpened."""
        near = torch.zeros(self._items if items is None else len(items))
        if self._features is not None:
            rows = self._features if items is None else self._features[items]
            near = (rows @ self._features[item]).clamp(0, 1) ** _SHARPNESS
        near[item if items is None else items == item] = 1
        return near

    def fingerprint(self) -> str:
        """Return a hash of all that was said."""
        digest = hashlib.sha256()
        for history, text, item in self.said:
            digest.update(f"{history.tolist()}{text}{item}".encode())
        return digest.hexdigest()[:16]


class PhraseSource:
    """Phrases out of the items' own texts, in the wordings that ask for or against one thing.

    Args:
        catalogue: The items. Their titles are read, and ``texts`` where they have any.
        templates: Wordings of the families "for" and "against".
        random_share: Share of requests for or against a random phrase; the others are for one of a next item's.

    Raises:
        DataError: If no phrase is common and rare enough.
    """

    def __init__(self, catalogue: Catalogue, templates: Mapping[str, Sequence[str]], random_share: float = 0.4) -> None:
        self.members = _phrases(catalogue, _carriers(templates))
        if not self.members:
            raise DataError(
                f"requests: the titles and texts of the {len(catalogue)} items share no word, expected one on "
                f"{_RARE:.0%} to {_COMMON:.0%} of them. Leave the source {CATALOGUE!r} out."
            )
        self._templates, self._random_share, self._items = templates, random_share, len(catalogue)
        self._names = list(self.members)
        self._of_item: dict[int, list[str]] = defaultdict(list)
        for name, having in self.members.items():
            for item in having.tolist():
                self._of_item[item].append(name)

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        own = self._of_item.get(window.following[rng.randrange(len(window.following))])
        true = rng.random() >= self._random_share and own is not None
        name = rng.choice(own if true and own is not None else self._names)
        family = "for" if true or rng.random() < 0.5 else "against"
        text = rng.choice(self._templates[family]).format(wanted=name, unwanted=name)
        side = 1.0 if family == "for" else -1.0
        return Drawn(text, lambda items: side * self._having(name, items), true=true)

    def _having(self, name: str, items: Tensor | None) -> Tensor:
        flags = torch.zeros(self._items)
        flags[self.members[name]] = 1
        return flags if items is None else flags[items]


class HistorySource:
    """The texts of the last three items, as in the paper: nothing is asked, and the next item is all that is known."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        place = rng.randrange(len(window.items))
        return Drawn("; ".join(map(self._text, window.items[max(0, place + 1 - _LAST) : place + 1])), position=place)

    def _text(self, item: int) -> str:
        texts = (column[item].replace("|", " ") for column in self._catalogue.texts.values())
        return " ".join(filter(None, [item_text(self._catalogue, item), *texts]))


class MixedSource:
    """Several sources, each drawn as often as its weight says."""

    def __init__(self, parts: Sequence[tuple[RequestSource, float]]) -> None:
        self._sources, self._weights = zip(*parts, strict=True)

    def draw(self, window: Window, rng: random.Random) -> Drawn:
        one = len(self._sources) == 1  # then nothing is drawn, so that this source's texts are as without the others
        source: RequestSource = self._sources[0] if one else rng.choices(self._sources, self._weights)[0]
        return source.draw(window, rng)

    def settings(self) -> dict[str, Any]:
        """Return what must be the same when a training is resumed; nothing for attributes alone, as ever."""
        if [type(source) for source in self._sources] == [AttributeSource]:
            return {}
        said = [source.fingerprint() if isinstance(source, SaidSource) else "" for source in self._sources]
        names = [type(source).__name__ for source in self._sources]
        return {"requests": [list(part) for part in zip(names, self._weights, said, strict=True)]}


def read_weights(text: str) -> dict[str, float]:
    """Read "stated=2,attributes=1"; a name alone weighs 1."""
    weights = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, weight = part.partition("=")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError as error:
            raise ConfigError(f"requests: {name.strip()}: found {weight!r}, expected a number, as stated=2.") from error
    check_weights(weights)
    return weights


def check_weights(requests: Weights) -> None:
    """Raise a ConfigError if a source is unknown or its weight impossible."""
    if not isinstance(requests, Mapping) or not requests:
        raise ConfigError(f"requests: found {requests!r:.60}, expected a weight for each of {', '.join(SOURCES)}.")
    for source, weight in requests.items():
        if source not in SOURCES if isinstance(source, str) else not callable(getattr(source, "draw", None)):
            raise ConfigError(f"requests: found {source!r:.60}, expected one of {', '.join(SOURCES)} or a source.")
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ConfigError(f"requests: {source!s:.60}: found {weight!r}, expected a positive number.")


def _carriers(templates: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the words that many wordings use."""
    least = math.floor(_CARRIERS * sum(map(len, templates.values()))) + 1  # more than that share of them
    return common_words(templates, lambda text: WORD.findall(text.lower()), least)


def _phrases(catalogue: Catalogue, carriers: frozenset[str]) -> dict[str, Tensor]:
    """Return the phrases that some of the items have, and the numbers of these items, (n,) int64 each."""
    items = range(len(catalogue))
    low, high = max(_FEWEST, math.ceil(_RARE * len(items))), max(_FEWEST, int(_COMMON * len(items)))
    columns = [catalogue.titles, *catalogue.texts.values()]
    parts = [[WORD.findall(part) for own in columns for part in own[item].lower().split("|")] for item in items]
    counts = Counter(word for row in parts for word in {word for part in row for word in part})
    kept = {word for word, count in counts.items() if count >= low}
    having: dict[str, list[int]] = defaultdict(list)
    for item, row in enumerate(parts):
        for name in sorted({name for part in row for name in _names(part, kept, carriers)}):
            having[name].append(item)
    return {name: torch.tensor(own) for name, own in having.items() if low <= len(own) <= high}


def _names(words: list[str], kept: set[str], carriers: frozenset[str]) -> Iterable[str]:
    """Return the words of one text that say something, its pairs of them, and the whole if it is short."""
    says = [word in kept and word not in carriers and any(map(str.isalpha, word)) for word in words]
    for place, word in enumerate(words):
        if says[place]:
            yield word
            if place and says[place - 1]:
                yield f"{words[place - 1]} {word}"
    if 1 < len(words) <= _LONGEST and any(says):
        yield " ".join(words)
