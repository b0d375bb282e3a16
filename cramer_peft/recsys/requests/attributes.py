"""Requests in natural language made from item attributes, and how well items match them.

They simulate users: a sentence says which attributes to look for or to avoid. Sentences for
training and for testing come from disjoint sets of templates, so that a test tells whether a model
follows what is asked for rather than one wording of it.
"""

from __future__ import annotations

import difflib
import html
import math
import random
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue, check_item_attributes

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
_WANTED_FIELDS = ("wanted", "wanted2")
_UNWANTED_FIELDS = ("unwanted", "unwanted2")


@dataclass(frozen=True)
class AttributeRequest:
    """A request and what it means.

    Args:
        text: The sentence.
        wanted: Attributes (as the catalogue names them) that it asks for.
        unwanted: Attributes that it asks to avoid.
        family: One of ``FAMILIES``.
    """

    text: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]
    family: str


def phrase(attribute: str) -> str:
    """Return an attribute as lower-case words, as one would write it in a sentence.

    A hyphen becomes a space unless a part beside it has three letters or fewer: "Film-Noir" gives
    "film noir", "Sci-Fi" gives "sci-fi". HTML entities and underscores are resolved.

    Args:
        attribute: Attribute as the catalogue names it.

    Raises:
        DataError: If nothing is left of it.
    """
    plain = html.unescape(attribute).lower().replace("_", " ")
    words = re.sub(r"(\w{4,})-(?=\w{4,})", r"\1 ", plain).split()
    if not words:
        raise DataError(f"The attribute {attribute!r} is blank, expected a word.")
    return " ".join(words)


def item_text(catalogue: Catalogue, index: int) -> str:
    """An item's title and attributes in words, as a text encoder reads them."""
    return " ".join([catalogue.titles[index], *map(phrase, catalogue.attribute_names(index))])


class RequestGenerator:
    """Makes requests about the attributes of a catalogue.

    All methods draw from the ``random.Random`` they are given and from nothing else: the same
    state gives the same request.

    Args:
        catalogue_attributes: The vocabulary of attributes, distinct, at least one.
        templates: Per family of ``FAMILIES`` one or more format strings. Their fields are
            ``{wanted}``, ``{wanted2}``, ``{unwanted}`` and ``{unwanted2}``, exactly as many as the
            family has attributes of each kind.
        against_weights: How often :meth:`counterfactual` draws each attribute to ask against it, all
            positive; None: all alike.

    Raises:
        DataError: If there are no attributes, one repeats or is blank, a family is missing, unknown
            or has no template, a template has other fields than its family, or there is not one
            positive weight for each attribute.
    """

    def __init__(
        self,
        catalogue_attributes: Sequence[str],
        templates: Mapping[str, Sequence[str]],
        against_weights: Sequence[float] | None = None,
    ) -> None:
        self._attributes = tuple(catalogue_attributes)
        self._columns = _columns_of(self._attributes)
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
        """Make a request that is true of an item.

        It names one or two attributes that the item has, or one or two that it lacks, or one of
        each. Which of these is drawn among those that are possible, with weights 3 (one it has),
        3 (two), 2 (one of each), 2 (one it lacks) and 1 (two): people ask for things more often
        than against them. An item without attributes gets a request against one attribute.

        Args:
            attributes: The attributes of the item.
            rng: Source of randomness.

        Raises:
            DataError: If one of ``attributes`` is not in the vocabulary.
        """
        _check_attributes(attributes, self._columns)
        given = set(attributes)
        # in the vocabulary's order: the order of a set of strings differs between processes
        has = [attribute for attribute in self._attributes if attribute in given]
        lacks = [attribute for attribute in self._attributes if attribute not in given]
        families = _possible_families(len(has), len(lacks)) if has else ["against"]
        family = rng.choices(families, [_TRUTHFUL_WEIGHTS[name] for name in families])[0]
        wanted, unwanted = _COUNTS[family]
        return self._make(family, rng.sample(has, wanted), rng.sample(lacks, unwanted), rng)

    def counterfactual(self, rng: random.Random, family: str | None = None) -> AttributeRequest:
        """Make a request for or against random attributes, all distinct; no item is known here.

        Args:
            rng: Source of randomness.
            family: One of ``FAMILIES``; by default drawn evenly among those that name attributes
                and for which the vocabulary is large enough.

        Raises:
            DataError: If ``family`` is unknown or names more attributes than there are.
        """
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
        """Make a request for one attribute.

        Raises:
            DataError: If ``attribute`` is not in the vocabulary.
        """
        _check_attributes((attribute,), self._columns)
        return self._make("for", (attribute,), (), rng)

    def against_attribute(self, attribute: str, rng: random.Random) -> AttributeRequest:
        """Make a request against one attribute.

        Raises:
            DataError: If ``attribute`` is not in the vocabulary.
        """
        _check_attributes((attribute,), self._columns)
        return self._make("against", (), (attribute,), rng)

    def _make(
        self, family: str, wanted: Sequence[str], unwanted: Sequence[str], rng: random.Random
    ) -> AttributeRequest:
        words = dict(zip(_WANTED_FIELDS, map(self._phrases.__getitem__, wanted), strict=False))
        words |= zip(_UNWANTED_FIELDS, map(self._phrases.__getitem__, unwanted), strict=False)
        text = rng.choice(self._templates[family]).format_map(words)
        return AttributeRequest(text, tuple(wanted), tuple(unwanted), family)


def match_scores(
    requests: Sequence[AttributeRequest],
    catalogue_attributes: Sequence[str],
    item_attributes: Tensor,
) -> Tensor:
    """Score how well each item matches each request.

    The score is the share of the wanted attributes that the item has, minus the share of the
    unwanted ones that it has; a share of none is 0. So it lies in -1 … 1.

    Args:
        requests: The requests.
        catalogue_attributes: The vocabulary, in the order of the columns of ``item_attributes``.
        item_attributes: Bool, shape ``(items, attributes)``.

    Returns:
        Float32, shape ``(requests, items)``, on the device of ``item_attributes``.

    Raises:
        DataError: If a request names an attribute that is not in the vocabulary, an attribute
            repeats there, or ``item_attributes`` has another type or width.
    """
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    weights = _shares(wanted) - _shares(unwanted)
    return weights @ item_attributes.to(torch.float32).T


def satisfies(
    requests: Sequence[AttributeRequest],
    catalogue_attributes: Sequence[str],
    item_attributes: Tensor,
) -> Tensor:
    """Tell which items have all that a request wants and nothing that it does not want.

    Args:
        requests: The requests.
        catalogue_attributes: The vocabulary, in the order of the columns of ``item_attributes``.
        item_attributes: Bool, shape ``(items, attributes)``.

    Returns:
        Bool, shape ``(requests, items)``, on the device of ``item_attributes``; all true for a
        request that names nothing.

    Raises:
        DataError: As for :func:`match_scores`.
    """
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    has = item_attributes.to(torch.float32).T
    # one product for both: it counts wanted attributes that are missing and unwanted ones present
    failures = wanted @ (1 - has) + unwanted @ has
    return failures == 0


def satisfied_by(
    requests: Sequence[AttributeRequest],
    catalogue_attributes: Sequence[str],
    item_attributes: Tensor,
    items: Tensor,
) -> Tensor:
    """:func:`satisfies` for some items of each request, at a cost that does not grow with the catalogue.

    Args:
        requests: The requests.
        catalogue_attributes: The vocabulary, in the order of the columns of ``item_attributes``.
        item_attributes: Bool, shape ``(items of the catalogue, attributes)``.
        items: Indices of items, int64, shape ``(requests, n)``.

    Returns:
        Bool, shape ``(requests, n)``: whether each row's items have all that its request wants and nothing that it
        does not want.

    Raises:
        DataError: As for :func:`match_scores`.
    """
    wanted, unwanted = _attribute_counts(requests, catalogue_attributes, item_attributes)
    has = item_attributes[items].to(torch.float32)
    surplus = has @ (wanted - unwanted)[:, :, None]  # whole numbers: exact
    return surplus.squeeze(-1) == wanted.sum(dim=1, keepdim=True)


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _attribute_counts(
    requests: Sequence[AttributeRequest],
    catalogue_attributes: Sequence[str],
    item_attributes: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return how often each request wants and rejects each attribute: (requests, attributes)."""
    columns = _columns_of(catalogue_attributes)
    items = item_attributes.shape[0] if item_attributes.dim() else 0
    check_item_attributes(item_attributes, (items, len(columns)))
    for request in requests:
        _check_attributes((*request.wanted, *request.unwanted), columns)
    device = item_attributes.device
    wanted = _count_matrix([request.wanted for request in requests], columns, device)
    unwanted = _count_matrix([request.unwanted for request in requests], columns, device)
    return wanted, unwanted


def _count_matrix(named: Sequence[Sequence[str]], columns: Mapping[str, int], device: torch.device) -> Tensor:
    cells = [(row, columns[name]) for row, names in enumerate(named) for name in names]
    index = torch.tensor(cells, dtype=torch.long, device=device).reshape(-1, 2)
    counts = torch.zeros(len(named), len(columns), device=device, dtype=torch.float32)
    ones = torch.ones(len(cells), device=device, dtype=torch.float32)
    return counts.index_put((index[:, 0], index[:, 1]), ones, accumulate=True)


def _columns_of(catalogue_attributes: Sequence[str]) -> dict[str, int]:
    columns = {attribute: column for column, attribute in enumerate(catalogue_attributes)}
    if len(columns) != len(catalogue_attributes):
        repeated = sorted(a for a in columns if list(catalogue_attributes).count(a) > 1)
        raise DataError(f"catalogue_attributes: {repeated} more than once; each must be there once.")
    return columns


def _check_attributes(attributes: Collection[str], columns: Mapping[str, int]) -> None:
    for attribute in attributes:
        if attribute not in columns:
            folded = {name.casefold(): name for name in columns}
            near = difflib.get_close_matches(attribute.casefold(), folded, n=3, cutoff=0.0)
            names = ", ".join(repr(folded[name]) for name in near) or "none (the vocabulary is empty)"
            raise DataError(f"The catalogue has no attribute {attribute!r}. Nearest: {names}.")


def _possible_families(has: int, lacks: int) -> list[str]:
    return [
        family
        for family, (wanted, unwanted) in _COUNTS.items()
        if family != "none" and wanted <= has and unwanted <= lacks
    ]


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


@lru_cache(maxsize=65536)  # generators are made of the same thousands of templates again and again
def _template_fields(template: str) -> tuple[str, ...] | None:
    """Return the sorted fields of a format string, None if it is not a plain one."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return None
    if any(conversion or spec for _, _, spec, conversion in parts):
        return None
    return tuple(sorted(name for _, name, _, _ in parts if name is not None))
