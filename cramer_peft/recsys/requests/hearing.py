"""The recommenders' request encoder: hears attributes, titles, numbers and open words, and says what it heard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.encoders import Reading, RequestEncoder, RequestReader, words_of
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attribute_requests import phrase, without_hyphens
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, without_contradictions
from cramer_peft.recsys.requests.described import announces_title, as_read, described, is_empty
from cramer_peft.recsys.requests.fact import Fact, Span
from cramer_peft.recsys.requests.facts import CatalogueFacts
from cramer_peft.recsys.requests.heard import Heard, HeardPart
from cramer_peft.recsys.requests.known_wordings import KnownWordings, open_place
from cramer_peft.recsys.requests.meanings import Meanings
from cramer_peft.recsys.requests.number_steps import steps_of
from cramer_peft.recsys.requests.request_parts import (
    ASKED,
    OPEN,
    SURE,
    Hearing,
    Named,
    RequestPart,
    Thing,
    as_their_heads,
    continued,
    is_certain,
    is_wanted,
    marked,
    marks_of,
)
from cramer_peft.recsys.requests.terms import read_terms
from cramer_peft.recsys.requests.thing_finder import ThingFinder
from cramer_peft.recsys.requests.wish_forms import feelings_by_form, wishes_by_form
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES, are_known

HEARING = "catalogue-3"  # its name in files
_COMPOUND = re.compile(r"(?<![\w-])\w+(?:-\w+)+")
_LEAST = 0.1  # a name counts if the reader is as sure that it is asked for or against
_SEEN = 0.05
_NAME = 0.3  # the reader marks names of items, such as "movies", less than that
_FOREIGN = 3  # so many words that no item and no usual request has, one after the other
# Of a term's meaning, what its text vector says beside the items that have it. Few items have a tag that would fit, but
# what people asked for they asked for in these words.
_OPEN_SHARE, _SAID_SHARE = 0.5, 0.2
_LEAST_RARITY = 0.05
_OPEN_CERTAINTY = 0.7
_POLITE = frozenset({"please", "pls", "plz", "thanks", ".", "!", "?"})
_REFERRING = frozenset({"that", "this", "these", "those", "them", "it"})
_USUAL = 20  # last items of a history that tell what is usual
_EVERY = 8  # of the sentences that ask nothing, those that are looked at
_KEPT = 10_000  # meanings
_MARGIN = 0.05
_NOTHING = torch.empty(0)  # the meaning of an attribute that is left open

Parts = tuple[RequestReader, RequestEncoder, dict[str, Any], Tensor]


class HearingEncoder(CatalogueEncoder):
    """Encodes a request as the meaning of what it wants and of what it does not want, in the items' features.

    A request may name attributes, titles of items, numbers and years, words that items have in their texts, words that
    people said when they came to an item, and any other words. See
    :class:`~cramer_peft.recsys.requests.meanings.Meanings`.

    Args:
        catalogue: The items.
        embeddings: Their vectors in the backbone, (items, width) float; None: none.
        reader: Reads which words are asked for and against; None: the default.
        words: Encodes words and sentences; None: the static vectors of ``wordllama``.
        words_options: Its options in the registry, to make it again.
        vectors: The words' vectors, in the order of the catalogue's terms, as :attr:`vectors` of an equal encoder gives
            them, so that nothing is encoded again; None: encode them.

    Raises:
        DataError: If embeddings or vectors do not fit the catalogue.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        embeddings: Tensor | None,
        reader: RequestReader | None = None,
        words: RequestEncoder | None = None,
        words_options: dict[str, Any] | None = None,
        vectors: Tensor | None = None,
    ) -> None:
        super().__init__(catalogue, embeddings, reader)
        self._catalogue = catalogue
        self.words, self.words_options = words or self.text_encoder, words_options or {}
        self._facts = CatalogueFacts(catalogue)
        self._wordings = KnownWordings(self._facts.is_apart)
        self.terms = read_terms(catalogue, self._described)
        # Rounded as they are in a file, so that a loaded encoder has the same bits.
        self.vectors = self._encoded(self.terms.names).half().float() if vectors is None else vectors
        if len(self.vectors) != len(self.terms.names):
            raise DataError(
                f"vectors: found {len(self.vectors)}, expected one for each of the {len(self.terms.names)} terms of "
                "the catalogue. Give the catalogue that they were made for."
            )
        self.meanings = Meanings(
            self.terms,
            self.vectors,
            catalogue.item_attributes,
            None if embeddings is None else embeddings.detach().float().cpu(),
            steps_of(catalogue.numbers, len(catalogue), self._described),
            self._described,
        )
        self.features = self.meanings.features
        width = self.meanings.width
        self.name, self.sides, self.dim = HEARING, {"wanted": width, "unwanted": width}, 2 * width
        self._middle_of_terms = self.vectors.mean(0) if len(self.vectors) else torch.zeros(self.vectors.shape[1])
        self._near = functional.normalize(self.vectors - self._middle_of_terms, dim=1)
        self._finder = ThingFinder(self._attributes, self._facts, self.terms)
        self._kept: dict[str, Tensor] = {}

    @property
    def parts(self) -> Parts:
        """What an encoder of the same terms, with other embeddings or more items, need not make again."""
        return self.reader, self.words, self.words_options, self.vectors

    @cached_property
    def _threshold(self) -> float:
        """The nearness to a term that sentences which ask nothing hardly ever have."""
        texts = TRAIN_TEMPLATES["none"][::_EVERY]
        return float(self._nearness_of(self._encoded(texts)).max()) + _MARGIN

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of ``texts``, (texts, dim) float32; zeros for a text that asks nothing."""
        return self._vectors_of_parts([found for found, _ in self._heard(texts)])

    def _vectors_of_parts(self, requests: Sequence[Sequence[RequestPart]]) -> Tensor:
        """Return each request's mean meanings of what is wanted and what is not, by certainty, (requests, dim)."""
        rows: list[tuple[int, float, Tensor]] = []
        for place, found in enumerate(requests):
            for side in (True, False):
                own = [part for part in found if part.wanted is side]
                total = sum(part.rarity for part in own)
                slot = 2 * place + (not side)
                rows += [(slot, part.certainty * part.rarity / total, part.meaning) for part in own]
        sides = torch.zeros(2 * len(requests), self.meanings.width)
        if rows:
            slots, weights, meanings = zip(*rows, strict=True)
            sides.index_add_(0, torch.tensor(slots), torch.tensor(weights)[:, None] * torch.stack(meanings))
        return sides.view(len(requests), self.dim)

    def hear(self, text: str) -> Heard:
        """Return what is understood of a text, and which of its words are not."""
        return self.listen(text)[0]

    def listen(self, text: str, before: Sequence[str] = (), history: Sequence[int] = ()) -> tuple[Heard, Tensor]:
        """Return what is understood of a request in a conversation, and its vector (dim,).

        Args:
            text: The request.
            before: Earlier requests, oldest first. What they ask for still counts, half as much for each later one.
            history: The person's items, (n,) item numbers, for "what I usually watch".
        """
        found, missed = self._heard([text])[0]
        if before:
            earlier = self._conversation(before)
            side = None if found else self._referring(text)
            if side is not None:
                found = [replace(part, wanted=side) for part in earlier if part.wanted]
            found = self._compared(continued(found, earlier))
        found = [self._usual(part, history) if part.kind == "habit" else part for part in found]
        parts = [HeardPart(part.text, part.kind, bool(part.wanted), part.name, part.certainty) for part in found]
        return Heard(tuple(parts), missed), self._vectors_of_parts([found])[0]

    def _conversation(self, texts: Sequence[str]) -> list[RequestPart]:
        """Return what still counts of several requests, the last one's parts first."""
        found: list[RequestPart] = []
        for own, _ in self._heard(texts):
            found = continued(own, found)
        return found

    def _referring(self, text: str) -> bool | None:
        """Return True or False if a text asks for or against "that", which an earlier request named; else None."""
        words = words_of(text)
        spans = [(place, place + 1) for place, word in enumerate(words) if word in _REFERRING]
        if not spans:
            return None
        wanted, unwanted = marks_of(self.reader.read_words([words], [spans])[0], spans[-1:])[0]
        return wanted >= unwanted

    def _usual(self, part: RequestPart, history: Sequence[int]) -> RequestPart:
        """Return a habit with the meaning of the items of a history."""
        if not len(history):
            return part
        members = torch.zeros(1, len(self.features))
        for item in list(history)[-_USUAL:]:
            members[0] = torch.maximum(members[0], self.meanings.like(item))
        return replace(part, meaning=self.meanings.of_sets(members)[0])

    def concepts(self, sets: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
        sides = torch.zeros(len(sets), 2, self.meanings.width)
        for place in (0, 1):
            rows = [row for row, own in enumerate(sets) if own[place] is not None]
            if rows:
                sides[rows, place] = self.meanings.of_sets(torch.stack([sets[row][place] for row in rows]))  # type: ignore[misc]
        return sides.flatten(1)

    def _heard(self, texts: Sequence[str]) -> list[Hearing]:
        """Return for each text what was found, in its order, and the content words that mean nothing.

        Texts of one wording, which differ in the attributes that they name, are looked at once.
        """
        split = [words_of(_COMPOUND.sub(self._as_attribute, text)) for text in texts]
        named = [self._named(words) for words in split]
        wordings = [self._wordings.of(words, own) for words, own in zip(split, named, strict=True)]
        known = self._wordings.look(wording for wording, _ in wordings)
        new = {wording: own for wording, own in wordings if wording not in known}
        known |= self._wordings.keep(self._read(new))
        filled = [known[wording] for wording, _ in wordings]
        apart = {words: own for words, own, heard in zip(split, named, filled, strict=True) if heard is None}
        read = self._read(apart)
        requests: list[Hearing] = []
        for words, own, heard in zip(split, named, filled, strict=True):
            found, missed = read[words] if heard is None else self._with_attributes(heard, words, own)
            requests.append((self._compared(found), missed))
        return requests

    def _compared(self, found: list[RequestPart]) -> list[RequestPart]:
        """Return parts of which those that compare, such as "cheap", do so among the items of the wanted attributes."""
        names = [part.name for part in found if part.kind == "attribute" and part.wanted]
        if not names or all(part.among is None for part in found):
            return found
        having = torch.stack([self._having(name) for name in names])
        items = having.all(0) if bool(having.all(0).any()) else having.any(0)
        return [self._among(part, items, " or ".join(names)) for part in found]

    def _among(self, part: RequestPart, items: Tensor, named: str) -> RequestPart:
        own = None if part.among is None else part.among(items)
        if own is None:
            return part
        name, members = f"{own[0]} among {named}", own[1]
        meaning = self._remembered(f"f {name}", lambda: self.meanings.of_sets(members[None])[0])
        return replace(part, name=name, meaning=meaning, rarity=self._rarity_of(members))

    def _with_attributes(self, heard: Hearing, words: Sequence[str], named: Sequence[Named]) -> Hearing:
        """Return what was understood of a wording, with the attributes of a request that has it."""
        found, missed = heard
        own: list[RequestPart] = []
        for part in found:
            place = open_place(part.name)
            if place is None:
                own.append(part)
            else:
                start, stop, name = named[place]
                own.append(self._attribute(" ".join(words[start:stop]), name, part.wanted))
        return without_contradictions(own, lambda part: part.name), missed

    def _attribute(self, text: str, name: str, side: bool | None) -> RequestPart:
        meaning = self._remembered(f"a {name}", lambda: self._of_attribute(name))
        return RequestPart(text, "attribute", name, meaning, side, rarity=self._rarities[name])

    @cached_property
    def _rarities(self) -> dict[str, float]:
        """The rarity of each attribute, by its name in requests."""
        return {name: self._rarity_of(self._having(name)) for name in map(phrase, self._catalogue.attributes)}

    def _having(self, name: str) -> Tensor:
        """Return which items have an attribute by one of its names, (items,) bool."""
        columns = [place for place, own in enumerate(self._catalogue.attributes) if phrase(own) == name]
        return self._catalogue.item_attributes[:, columns].any(1)

    def _rarity_of(self, members: Tensor) -> float:
        """Return the share of the items that are not meant: beside a rare thing, what most items are weighs little."""
        return max(_LEAST_RARITY, 1 - float(members[: self._described].float().mean()))

    def _read(self, named: Mapping[tuple[str, ...], Sequence[Named]]) -> dict[tuple[str, ...], Hearing]:
        """Do as :meth:`_heard`, for words and the attributes that they name."""
        # Names of attributes and facts are hidden from the reader, which then sees the wording and the open words.
        # Where there are open words, it also reads the wording alone, which may ask for nothing at all.
        formed = {words: wishes_by_form(words) for words in named}
        things = {words: self._finder.find(words, own, formed[words]) for words, own in named.items()}
        spans = {words: [span for span, *_ in own] for words, own in things.items()}
        closed = {
            words: [span for span, kind, _ in own if kind != OPEN or span in formed[words]]
            for words, own in things.items()
        }
        has_open = [words for words, own in closed.items() if len(own) < len(spans[words])]
        texts = {words: as_read(words, things[words]) for words in named}
        plain = dict(zip(closed, self.reader.read_words(list(texts.values()), list(closed.values())), strict=True))
        hidden = self.reader.read_words([texts[words] for words in has_open], [spans[words] for words in has_open])
        frames = {**plain, **dict(zip(has_open, hidden, strict=True))}
        return {
            words: self._parts(words, own, formed[words], frames[words], plain[words]) for words, own in things.items()
        }

    def _as_attribute(self, found: re.Match[str]) -> str:
        """Return a word with hyphens as the catalogue's attributes are written, if it is one: "film-noir"."""
        apart = without_hyphens(found[0])
        return apart if words_of(apart) in self._attributes else found[0]

    def _is_kind(self, span: Span, what: int | None) -> bool:
        return what is not None and len(words_of(self.terms.names[what])) > span[1] - span[0]

    def _parts(
        self, words: Sequence[str], spans: Sequence[Thing], formed: Mapping[Span, bool], hidden: Reading, plain: Reading
    ) -> Hearing:
        found: list[tuple[Span, RequestPart]] = []
        missed: list[str] = []
        things = sorted([*spans, *marked(plain, spans)], key=lambda one: one[0])
        feelings = feelings_by_form(words) if formed else []
        unread = [" ".join(words[slice(*span)]) for span, *_ in things if span in feelings]
        spans = [one for one in things if one[0] not in feelings]
        places = [span for span, *_ in spans]
        marks = list(zip(marks_of(hidden, places), marks_of(plain, places), strict=True))
        certain = [is_certain(kind, what, own) for (_, kind, what), (_, own) in zip(spans, marks, strict=True)]
        named = any(kind == "attribute" for _, kind, _ in spans)  # then a wording tells enough by itself
        if any(what is None and span[1] - span[0] >= _FOREIGN for span, _, what in spans):
            return [], tuple(" ".join(words[slice(*span)]) for span, kind, _ in spans)  # probably another language
        told_by_place = described(words, spans, [frame for frame, _ in marks], self.terms, self._is_name)
        for place, ((span, kind, what), (frame, own)) in enumerate(zip(spans, marks, strict=True)):
            text = " ".join(words[slice(*span)])
            contrasted = "but" in words[max(0, span[0] - 2) : span[0]]
            if kind == OPEN:
                beside = [*words[: span[0]], *words[span[1] :]]
                alone = all(word in _POLITE for word in beside) and not (beside and is_empty(words[slice(*span)], what))
                asked = not named and any(certain[:place] + certain[place + 1 :])
                told = (contrasted and place > 0) or self._is_kind(span, what)
                clear = (
                    alone or certain[place] or told_by_place[place] or span in formed or (told and sum(frame) >= SURE)
                )
                if not (clear or self._is_meant(text, what, frame, own, asked)):
                    unread += [text] if what is None and not announces_title(spans[place], spans) else []
                    continue
            elif span not in formed and sum(own) < _LEAST and not any(certain[:place] + certain[place + 1 :]):
                continue  # the word stands there for something else
            side = formed.get(span, is_wanted(kind, what, own[0] + frame[0], own[1] + frame[1], contrasted))
            part = self._found(span, kind, what, text, side)
            if part is None:
                missed.append(text)
            else:
                found.append((span, part))
        if not found and not missed and all(against < SURE for (_, against), _ in marks):
            whole = self._whole(words)
            found += [] if whole is None else [((0, len(words)), whole)]
        return without_contradictions(as_their_heads(found), lambda part: part.name), tuple(missed + unread)

    def _is_meant(
        self, text: str, what: Any, frame: tuple[float, float], own: tuple[float, float], asked: bool
    ) -> bool:
        """Return True if open words are asked for or against although the reader does not mark them by themselves.

        ``asked`` is True if other words of the sentence surely are.
        """
        if asked:
            return sum(frame) >= ASKED and (sum(own) >= _SEEN or not self._is_name(text))
        return what is not None and bool(self.terms.said[what]) and sum(frame) >= SURE

    def _is_name(self, text: str) -> bool:
        """Return True if the reader takes words for a name of any item, as "movies" is."""
        reading = self.reader.read([f"any {text}"])[0]
        return sum(marks_of(reading, [(1, len(reading.words))])[0]) < _NAME

    def _found(self, span: Span, kind: str, what: Any, text: str, side: bool) -> RequestPart | None:
        if isinstance(what, Fact):
            meaning = self._of_fact(what)
            rarity = self._rarity_of(what.members)
            return RequestPart(text, kind, what.meaning, meaning, side, what.certainty, rarity, what.among)
        if kind == "attribute":
            is_open = open_place(what) is not None
            return RequestPart(text, kind, what, _NOTHING, side) if is_open else self._attribute(text, what, side)
        vector = self._text_vector(text)
        if what is None:
            if not are_known(text, self._vectors.tokens_of) and float(self._nearness_of(vector)) <= self._threshold:
                return None
            return RequestPart(
                text, kind, self._named_like(vector, text), self._open(text, vector), side, _OPEN_CERTAINTY
            )
        share = _SAID_SHARE if self.terms.said[what] else _OPEN_SHARE
        known, opened = self.meanings.of_terms[what], self._open(text, vector)
        meaning = self._remembered(f"m {what} {text}", lambda: torch.lerp(known, opened, share))
        rarity = float(self.meanings.rarity[what])
        return RequestPart(text, kind, self.terms.names[what], meaning, side, rarity=rarity)

    def _whole(self, words: Sequence[str]) -> RequestPart | None:
        """Return the meaning of a sentence of which no word was found, if it is nearer to a term than such ones are."""
        text = " ".join(words)
        if not any(word[0].isalnum() for word in words):
            return None
        vector = self._text_vector(text)
        nearness = float(self._nearness_of(vector))
        if nearness <= self._threshold:
            return None
        return RequestPart(
            text, "words", self._named_like(vector, text), self._open(text, vector), True, min(1.0, nearness)
        )

    def _named_like(self, vector: Tensor, text: str) -> str:
        near = self._nearnesses(vector)[0]
        names = [self.terms.names[place] for place in near.topk(min(3, len(near))).indices.tolist()]
        return f"{text} (near {', '.join(names)})"

    def _nearness_of(self, vectors: Tensor) -> Tensor:
        return self._nearnesses(vectors).amax(1) if len(self._near) else torch.zeros(len(vectors))

    def _nearnesses(self, vectors: Tensor) -> Tensor:
        """Return how near texts are to each term, by their vectors, (texts, terms)."""
        near: Tensor = functional.normalize(vectors - self._middle_of_terms, dim=1) @ self._near.T
        return near

    def _of_fact(self, fact: Fact) -> Tensor:
        if fact.kind == "title":

            def made() -> Tensor:
                members = fact.members
                for item in fact.members.nonzero()[:, 0].tolist()[:8]:
                    members = torch.maximum(members, fact.members[item] * self.meanings.like(item))
                return self.meanings.of_sets(members[None])[0]

            return self._remembered(f"t {fact.meaning}", made)
        return self._remembered(f"f {fact.meaning}", lambda: self.meanings.of_sets(fact.members[None])[0])

    def _of_attribute(self, name: str) -> Tensor:
        return self.meanings.of_sets(self._having(name)[None])[0]

    def _text_vector(self, text: str) -> Tensor:
        """Return the vector of a text, (1, width), kept: phrases return, and a sentence encoder is slow."""
        return self._remembered(f"v {text}", lambda: self._encoded([text]))

    def _open(self, text: str, vector: Tensor) -> Tensor:
        return self._remembered(f"w {text}", lambda: self.meanings.of_open(vector)[0])

    def _remembered(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        known = self._kept.get(key)
        if known is not None:
            return known
        made = make()
        with self._lock:  # another thread may have emptied it
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            return self._kept.setdefault(key, made)

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        pieces = [self.words.encode(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        return torch.cat([torch.zeros(0, self.words.dim), *pieces]).float()
