"""Read a request by its words: the attributes it names, and whether it is for or against each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, phrase
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES

_FIELD = re.compile(r"\{(unwanted|wanted)2?\}")
_REACH = 6  # words looked at on each side of a name
_STEPS = 200
_RIDGE = 7e-6  # by cross-validation over the training wordings


class RequestParser:
    """A parser that finds attribute names in a text, and tells for from against by the words around each.

    A name is found in any case, with hyphens or spaces, and with a plural s. For or against is decided by a
    logistic regression over the words of the wordings given, fitted at construction.

    Args:
        attributes: The catalogue's vocabulary.
        templates: Wordings to learn from, by family, as for ``RequestGenerator``; never test wordings.
    """

    def __init__(self, attributes: Sequence[str], templates: Mapping[str, Sequence[str]] = TRAIN_TEMPLATES) -> None:
        self._names = _forms(attributes)
        longest_first = sorted(self._names, key=lambda form: (-len(form), form))
        alternatives = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<!\w)({alternatives})(?:s|es)?(?!\w)" if alternatives else r"(?!)")
        self._polarity = _polarity(tuple((name, tuple(lines)) for name, lines in sorted(templates.items())))

    def __call__(self, text: str) -> AttributeRequest:
        """Return the wanted and unwanted attributes of a text; a name on both sides counts as unwanted."""
        lowered = text.lower()
        found = list(self._pattern.finditer(lowered))
        against = self._polarity.against(lowered, [match.span() for match in found])
        named = [self._names[match.group(1)] for match in found]
        unwanted = {name for name, sign in zip(named, against, strict=True) if sign}
        wanted = set(named) - unwanted
        return AttributeRequest(
            text, tuple(sorted(wanted)), tuple(sorted(unwanted)), _family(len(wanted), len(unwanted))
        )


def _forms(attributes: Sequence[str]) -> dict[str, str]:
    """Return spelling → attribute."""
    forms: dict[str, str] = {}
    for attribute in attributes:
        words = phrase(attribute)
        for form in (words, words.replace("-", " "), words.replace("-", ""), attribute.lower()):
            forms.setdefault(form, attribute)
    return forms


def _family(wanted: int, unwanted: int) -> str:
    if wanted and unwanted:
        return "mixed"
    kind, count = ("for", wanted) if wanted else ("against", unwanted)
    return "none" if not count else kind if count == 1 else f"{kind}_pair"


@dataclass(frozen=True)
class _Polarity:
    """A logistic regression over the words around a name."""

    weights: dict[str, float]
    bias: float

    def against(self, text: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
        """Return for each name whether it is unwanted."""
        return [
            sum(self.weights.get(word, 0.0) for word in features) + self.bias > 0 for features in _features(text, spans)
        ]


def _features(text: str, spans: Sequence[tuple[int, int]]) -> list[set[str]]:
    """Return for each name the words around it, by side and nearness, and the words around the whole list of names."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    gaps = [_words(text[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    features = []
    for number in range(len(spans)):
        before, after = gaps[number][-_REACH:], gaps[number + 1][:_REACH]
        found = {f"<{word}" for word in before} | {f">{word}" for word in after}
        found |= {f"<{a} {b}" for a, b in pairwise(before)} | {f">{a} {b}" for a, b in pairwise(["_", *after])}
        first, last = gaps[0][-_REACH:], gaps[-1][:_REACH]
        found |= {f"^{number > 0}{word}" for word in first} | {f"${number < len(spans) - 1}{word}" for word in last}
        features.append(found)
    return features


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’]+|[.,;!?:]", text)


@lru_cache(maxsize=8)
def _polarity(templates: tuple[tuple[str, tuple[str, ...]], ...]) -> _Polarity:
    features: list[set[str]] = []
    signs: list[float] = []
    for _, lines in templates:
        for line in lines:
            fields = list(_FIELD.finditer(line))
            features += _features(line.lower(), [match.span() for match in fields])
            signs += [float(match.group(1) == "unwanted") for match in fields]
    vocabulary = sorted(set().union(*features))
    columns = {word: column for column, word in enumerate(vocabulary)}
    weights, bias = _regress(
        [[columns[word] for word in sorted(found)] for found in features], torch.tensor(signs), len(vocabulary)
    )
    return _Polarity(dict(zip(vocabulary, weights.tolist(), strict=True)), bias)


@torch.enable_grad()
def _regress(features: Sequence[Sequence[int]], signs: Tensor, count: int) -> tuple[Tensor, float]:
    """Return weights and bias of a logistic regression with a ridge penalty.

    Each row of ``features`` lists the features that it has, of ``count`` in all.
    """
    places = torch.tensor([feature for row in features for feature in row])
    starts = torch.tensor([0, *accumulate(map(len, features))][:-1])
    weights = torch.zeros(count, requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        sums = functional.embedding_bag(places, weights[:, None], starts, mode="sum")[:, 0]
        loss = functional.binary_cross_entropy_with_logits(sums + bias, signs)
        loss = loss + _RIDGE * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach(), float(bias.detach())
