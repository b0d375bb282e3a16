"""Requests in natural language, made from item attributes.

They simulate users: a sentence names attributes to look for or to avoid. Training and test use disjoint sets of
sentence templates, so that a test shows whether a model follows the meaning rather than a wording.
"""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue, nearest, plain_text

FAMILIES = ("for", "against", "for_pair", "against_pair", "mixed", "none")

# how many attributes a request of each family wants, and how many it rejects
_COUNTS = {
    "for": (1, 0),
    "against": (0, 1),
    "for_pair": (2, 0),
    "against_pair": (0, 2),
    "mixed": (1, 1),
    "none": (0, 0),
}
# how often a truthful request is of each family, where all are possible
_TRUTHFUL_WEIGHTS = {"for": 3, "for_pair": 3, "mixed": 2, "against": 2, "against_pair": 1}
_HYPHEN = re.compile(r"(?<=\w{4})-(?=\w{4})")  # looks at eight characters, however long the words are
_WANTED_FIELDS = ("wanted", "wanted2")
_UNWANTED_FIELDS = ("unwanted", "unwanted2")


@dataclass(frozen=True)
class AttributeRequest:
    """A sentence, the attributes that it asks for and to avoid, as the catalogue names them, and its family."""

    text: str
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    family: str = "none"


BLANK = AttributeRequest(" ")


def phrase(attribute: str) -> str:
    """Return an attribute of the catalogue as lower-case words: "Film-Noir" gives "film noir", "Sci-Fi" "sci-fi".

    A hyphen becomes a space unless a part beside it has three letters or fewer.
    """
    words = without_hyphens(plain_text(attribute)).split()
    if not words:
        raise DataError(f"The attribute {attribute!r} is blank, expected a word.")
    return " ".join(words)


def without_hyphens(text: str) -> str:
    """Return a text with a space for each hyphen between longer parts, as :func:`phrase` writes attributes."""
    return _HYPHEN.sub(" ", text)


def item_text(catalogue: Catalogue, index: int) -> str:
    """Return an item's title and attributes in words, as a text encoder reads them."""
    return " ".join([catalogue.titles[index], *map(phrase, catalogue.attribute_names(index))])


class RequestGenerator:
    """Makes requests about the attributes of a catalogue; equal states of a ``random.Random`` give equal requests.

    ``templates`` are format strings for each of ``FAMILIES``, with the fields ``{wanted}``, ``{wanted2}``,
    ``{unwanted}``, ``{unwanted2}``, as many as the family has attributes of each kind. ``against_weights`` are relative
    frequencies by which :meth:`counterfactual` draws the attribute to ask against; None: equal. Impossible arguments
    raise a DataError.
    """

    def __init__(
        self,
        catalogue_attributes: Sequence[str],
        templates: Mapping[str, Sequence[str]],
        against_weights: Sequence[float] | None = None,
    ) -> None:
        self._attributes = tuple(catalogue_attributes)
        self._columns = columns_of(self._attributes)
        self._phrases = {attribute: phrase(attribute) for attribute in self._attributes}
        if not self._attributes:
            raise DataError("catalogue_attributes is empty, expected at least one attribute.")
        _check_templates(templates)
        self._templates = {family: tuple(templates[family]) for family in FAMILIES}
        if against_weights is not None and (
            len(against_weights) != len(self._attributes)
            or not all(0 < weight < math.inf for weight in against_weights)
        ):
            raise DataError(
                f"against_weights: found {list(against_weights)[:5]} for {len(self._attributes)} attributes, expected "
                "one positive number for each."
            )
        self._against_weights = against_weights

    def truthful(self, attributes: Collection[str], rng: random.Random) -> AttributeRequest:
        """Make a request that is true of an item: for what it has, against what it lacks, or one of each.

        The family is drawn by ``_TRUTHFUL_WEIGHTS`` among the possible ones: people ask for things more often than
        against them. An item without attributes gets a request against one.
        """
        check_attributes(attributes, self._columns)
        given = set(attributes)
        # the order of a set of strings differs between processes, so keep the vocabulary's
        has = [attribute for attribute in self._attributes if attribute in given]
        lacks = [attribute for attribute in self._attributes if attribute not in given]
        possible = [name for name, (n, m) in _COUNTS.items() if name != "none" and n <= len(has) and m <= len(lacks)]
        families = possible if has else ["against"]
        family = rng.choices(families, [_TRUTHFUL_WEIGHTS[name] for name in families])[0]
        wanted, unwanted = _COUNTS[family]
        return self._make(family, rng.sample(has, wanted), rng.sample(lacks, unwanted), rng)

    def counterfactual(self, rng: random.Random, family: str | None = None) -> AttributeRequest:
        """Make a request for or against random distinct attributes; a family of None is drawn evenly."""
        if family is None:
            size = len(self._attributes)
            family = rng.choice([name for name in FAMILIES[:-1] if sum(_COUNTS[name]) <= size])
        if family not in _COUNTS:
            raise DataError(f"family: found {family!r}, expected one of {', '.join(FAMILIES)}.")
        wanted, unwanted = _COUNTS[family]
        if wanted + unwanted > len(self._attributes):
            raise DataError(
                f"A request of the family {family!r} names {wanted + unwanted} attributes, but the "
                f"vocabulary has {len(self._attributes)}. Choose 'for' or 'against'."
            )
        if self._against_weights is None or not unwanted:
            drawn = rng.sample(self._attributes, wanted + unwanted)
            return self._make(family, drawn[:wanted], drawn[wanted:], rng)
        rest, weights = list(self._attributes), list(self._against_weights)
        against = []
        for _ in range(unwanted):
            place = rng.choices(range(len(rest)), weights)[0]
            against.append(rest.pop(place))
            weights.pop(place)
        return self._make(family, rng.sample(rest, wanted), against, rng)

    def empty(self, rng: random.Random) -> AttributeRequest:
        """Make a sentence that asks for nothing in particular."""
        return self._make("none", (), (), rng)

    def for_attribute(self, attribute: str, rng: random.Random) -> AttributeRequest:
        """Make a request for one attribute; raise a DataError if it is not in the vocabulary."""
        check_attributes((attribute,), self._columns)
        return self._make("for", (attribute,), (), rng)

    def against_attribute(self, attribute: str, rng: random.Random) -> AttributeRequest:
        """Make a request against one attribute; raise a DataError if it is not in the vocabulary."""
        check_attributes((attribute,), self._columns)
        return self._make("against", (), (attribute,), rng)

    def _make(
        self, family: str, wanted: Sequence[str], unwanted: Sequence[str], rng: random.Random
    ) -> AttributeRequest:
        words = dict(zip(_WANTED_FIELDS, map(self._phrases.__getitem__, wanted), strict=False))
        words |= zip(_UNWANTED_FIELDS, map(self._phrases.__getitem__, unwanted), strict=False)
        text = rng.choice(self._templates[family]).format_map(words)
        return AttributeRequest(text, tuple(wanted), tuple(unwanted), family)


def _check_templates(templates: Mapping[str, Sequence[str]]) -> None:
    if set(templates) != set(FAMILIES):
        raise DataError(f"templates: found the families {sorted(templates)}, expected {sorted(FAMILIES)}.")
    for family, (wanted, unwanted) in _COUNTS.items():
        if isinstance(templates[family], str) or not templates[family]:
            raise DataError(f"templates[{family!r}]: expected one or more templates in a sequence.")
        expected = tuple(sorted({*_WANTED_FIELDS[:wanted], *_UNWANTED_FIELDS[:unwanted]}))
        for template in templates[family]:
            if _template_fields(template) != expected:
                raise DataError(
                    f"templates[{family!r}]: {template!r} has not the fields that were expected: "
                    f"each of {list(expected)} once, without a conversion or a format."
                )


@lru_cache(maxsize=65536)  # every generator checks the same thousands of templates
def _template_fields(template: str) -> tuple[str, ...] | None:
    """Return the sorted fields of a format string; None if it is not a plain one."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return None
    if any(conversion or spec for _, _, spec, conversion in parts):
        return None
    return tuple(sorted(name for _, name, _, _ in parts if name is not None))


def columns_of(catalogue_attributes: Sequence[str]) -> dict[str, int]:
    """Return attribute → column; raise a DataError if an attribute repeats."""
    columns = {attribute: column for column, attribute in enumerate(catalogue_attributes)}
    if len(columns) != len(catalogue_attributes):
        repeated = sorted(attribute for attribute, count in Counter(catalogue_attributes).items() if count > 1)
        raise DataError(f"catalogue_attributes: {repeated} more than once; each must be there once.")
    return columns


def check_attributes(attributes: Collection[str], columns: Mapping[str, int]) -> None:
    """Raise a DataError if an attribute is not in the vocabulary."""
    for attribute in attributes:
        if attribute not in columns:
            names = nearest(attribute, tuple(columns)) if columns else "none (the vocabulary is empty)"
            raise DataError(f"The catalogue has no attribute {attribute!r}. Nearest: {names}.")
