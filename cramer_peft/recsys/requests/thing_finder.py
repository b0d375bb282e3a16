"""Finds what a request names: attributes, facts of the catalogue, terms of its items, and other words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from cramer_peft.recsys.requests.catalogue_encoder import lengths_by_first, named_by_first
from cramer_peft.recsys.requests.fact import Span, is_free
from cramer_peft.recsys.requests.facts import CatalogueFacts
from cramer_peft.recsys.requests.request_parts import OPEN, Named, Thing
from cramer_peft.recsys.requests.terms import Terms, runs_of_content, stem, stems
from cramer_peft.recsys.requests.wordings import frame_words


class ThingFinder:
    """Finds what a request names, of which no two share a word.

    Args:
        attributes: The names of attributes, by their words.
        facts: Finds what the catalogue knows exactly.
        terms: The terms of the items.
    """

    def __init__(self, attributes: Mapping[tuple[str, ...], str], facts: CatalogueFacts, terms: Terms) -> None:
        self._attributes, self._facts, self._terms = attributes, facts, terms
        self._term_lengths = lengths_by_first(terms.numbers)

    def find(self, words: Sequence[str], named: Sequence[Named], formed: Iterable[Span]) -> list[Thing]:
        """Find what a request names: span, kind and what is found there, of which no two share a word.

        ``named`` are its attributes, ``formed`` the words of wishes that it tells by their form.
        """
        attributes: list[Thing] = [((start, stop), "attribute", name) for start, stop, name in named]
        facts = self._facts.find(words, [span for span, *_ in attributes])
        found: list[Thing] = [(fact.span, fact.kind, fact) for fact in facts]
        terms = [
            (span, "attribute", self._attribute_terms[what]) if what in self._attribute_terms else (span, kind, what)
            for span, kind, what in self._named_terms(words)
        ]
        for others in (attributes, terms):
            taken = [span for span, *_ in found]
            found += [one for one in others if is_free(one[0], taken)]
        taken = [span for span, *_ in found]
        free = [span for span in formed if is_free(span, taken)]
        found += [(span, OPEN, self._terms.numbers.get(stems(words[slice(*span)]))) for span in free]
        used = {place for span, *_ in found for place in range(*span)}
        used |= {place for place, pair in enumerate(pairwise(words)) if pair == ("similar", "to")}
        for start, stop in runs_of_content(words):
            left = start
            for place in range(start, stop + 1):
                if place == stop or place in used:
                    if left < place:
                        found.append(((left, place), OPEN, self._kind_of(words, (left, place), named)))
                    left = place + 1
        return sorted(found, key=lambda one: one[0])

    def _kind_of(self, words: Sequence[str], span: Span, named: Sequence[Named]) -> int | None:
        """Return the term that words and the attribute behind them are together: "romantic comedy"; None: none."""
        stops = (stop for start, stop, _ in named if start == span[1])
        return next((self._terms.numbers.get(stems(words[span[0] : stop])) for stop in stops), None)

    def _named_terms(self, words: Sequence[str]) -> list[tuple[Span, str, int]]:
        """Find terms of the items, the longest first."""

        def term(own: tuple[str, ...], place: int) -> int | None:
            number = self._terms.numbers.get(own)
            counts = number is not None and (len(own) > 1 or self._counts_alone(words[place], number))
            return number if counts else None

        keys = [stem(word) if word[0].isalnum() else "" for word in words]
        return [((start, stop), OPEN, number) for start, stop, number in named_by_first(keys, self._term_lengths, term)]

    @cached_property
    def _attribute_terms(self) -> dict[int, str]:
        """The terms that are attributes, so that "thrillers" names one, too."""
        numbers = ((self._terms.numbers.get(stems(words)), name) for words, name in self._attributes.items())
        return {number: name for number, name in numbers if number is not None}

    def _counts_alone(self, word: str, number: int) -> bool:
        return word not in frame_words() or bool(self._terms.values[number])
