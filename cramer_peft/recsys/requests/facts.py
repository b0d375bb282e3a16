"""What a catalogue knows exactly and a request names: titles, numbers and years, popularity, and habit."""

from __future__ import annotations

from collections.abc import Sequence

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.fact import Fact, Span, apart, is_free
from cramer_peft.recsys.requests.number_facts import NumberFinder
from cramer_peft.recsys.requests.popularity_facts import PopularityFinder, find_habits
from cramer_peft.recsys.requests.title_facts import TitleFinder

__all__ = ["CatalogueFacts", "Fact"]


class CatalogueFacts:
    """Finds what a catalogue knows exactly in the words of a request.

    Titles are found where the sentence says that one follows ("similar to Heat"), where they are quoted or with their
    year, and alone where they are several words that hardly mean anything else ("jurassic park"). Numbers are found
    where the catalogue has a column for them. Misspelt titles are met if ``rapidfuzz`` is installed (extra ``demo``).

    Args:
        catalogue: The items, with their columns of numbers.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._items = len(catalogue)
        self._titles = TitleFinder(catalogue)
        self._numbers = NumberFinder(catalogue)
        self._popularity = PopularityFinder(catalogue)

    def find(self, words: Sequence[str], taken: Sequence[Span] = ()) -> list[Fact]:
        """Return the facts that a request names, in the order of its words; no two share a word.

        Args:
            words: Lower-case words and punctuation marks, as ``cramer_peft.encoders.WORD`` splits a text.
            taken: Words that name attributes, as start and stop. They are left alone, unless they are a part of a
                longer title that the sentence announces: "like War of the Worlds".
        """
        habits = [fact for fact in find_habits(words, self._items) if is_free(fact.span, taken)]
        announced, alone = self._titles.find(words, taken)
        others = [*self._numbers.find(words), *self._popularity.find(words)]
        begun = {fact.start for fact in announced}  # "the new Mad Max" says nothing of its year
        free = [fact for fact in others if is_free(fact.span, taken) and fact.stop not in begun]
        return apart([*announced, *habits, *free, *alone])

    def is_apart(self, words: Sequence[str], start: int, stop: int) -> bool:
        """Return True if no title could hold the words from a start to a stop, alone or with their neighbours."""
        return self._titles.is_apart(words, start, stop)
