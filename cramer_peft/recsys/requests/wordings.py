"""Wordings of simulated requests, by family; training and test wordings are disjoint.

Each line of the files holds a family and a sentence template. The first 768 training and 65 test wordings were written
together. Language models wrote the others: 22 who saw no test wording, and three test authors who saw none at all.
No test wording has been changed since a model was first scored on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files

from cramer_peft.encoders import WORD, words_of
from cramer_peft.recsys.requests.attribute_requests import FAMILIES

_FRAME = 10  # wordings that share a word of none of the things asked for
_USUAL = 3  # wordings that share a usual word
_PRAISE = 11  # wordings that ask nothing and have a word such as "good", "nice" or "new"
_LETTERS = 2.0  # of a known word, for each token that it is split into: "spooky" has 6 in 3, "zxqv" 4 in 4
_EMPTY_SHARE = 0.2  # of a word's wordings, those that ask nothing, from which on it asks nothing by itself


def _read_templates(name: str) -> dict[str, tuple[str, ...]]:
    """Return family → its templates, in the order of the file."""
    lines = files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {family: tuple(text for kind, text in rows if kind == family) for family in FAMILIES}


TRAIN_TEMPLATES = _read_templates("training_wordings.tsv")
TEST_TEMPLATES = _read_templates("test_wordings.tsv")


@lru_cache(maxsize=1)
def frame_words() -> frozenset[str]:
    """Return the words that requests of any kind are made of: those of several training wordings."""
    fields = re.compile(r"\{\w+\}")
    return common_words(TRAIN_TEMPLATES, lambda text: WORD.findall(fields.sub(" ", text).lower()), _FRAME)


def common_words(
    templates: Mapping[str, Sequence[str]], words: Callable[[str], Iterable[str]], least: float
) -> frozenset[str]:
    """Return the words that at least so many wordings have, whatever their family; ``words`` splits a wording."""
    return frozenset(word for word, count in count_words(templates, words).items() if count >= least)


def count_words(templates: Mapping[str, Sequence[str]], words: Callable[[str], Iterable[str]]) -> Counter[str]:
    """Return of how many wordings each word is a part."""
    return Counter(word for family in templates.values() for text in family for word in set(words(text)))


@lru_cache(maxsize=2)
def usual_words(least: int = _USUAL) -> frozenset[str]:
    """Return the words that at least so many wordings have."""
    return common_words(TRAIN_TEMPLATES, words_of, least)


@lru_cache(maxsize=1)
def empty_words() -> tuple[frozenset[str], frozenset[str]]:
    """Return words such as "good" that many wordings have which ask nothing, and those that mostly such ones have."""
    counts, others = Counter[str](), Counter[str]()
    for family, texts in TRAIN_TEMPLATES.items():
        (counts if family == "none" else others).update(count_words({family: texts}, words_of))
    praise = frozenset(word for word, count in counts.items() if count >= _PRAISE)
    return praise, frozenset(word for word, count in counts.items() if count >= _EMPTY_SHARE * (count + others[word]))


def are_known(text: str, tokens_of: Callable[[str], int]) -> bool:
    """Return True if the words of a text are such as static vectors know, and not letters put together.

    ``tokens_of`` returns the number of tokens that their tokenizer splits a word into.
    """
    return all(
        "'" not in word and len(word) >= _LETTERS * min(map(tokens_of, (word, word.capitalize())))
        for word in WORD.findall(text)
        if word not in frame_words()
    )
