"""How far the lists of many users follow a request, for the demo's pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.commands.everyday import first_decade
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import top_items
from cramer_peft.recsys.evaluation.users import EvaluationUsers
from cramer_peft.recsys.requests.attribute_requests import phrase
from cramer_peft.recsys.requests.number_columns import years_of
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES

SHOWN_USERS = 200
_ENOUGH = 30  # items of an attribute to ask for: every user has ten left


@dataclass(frozen=True)
class Followed:
    """The share of the top ten that fits a request, a mean over users: without the request, and with it."""

    request: str
    before: float
    after: float


def followed(masks: RequestMaskModel, users: EvaluationUsers, sample: int = SHOWN_USERS) -> list[Followed]:
    """Return how far the first users' lists follow some requests whose answer the catalogue knows."""
    count = min(len(users), sample)
    before = _top(masks, users, [None] * count)
    rows = []
    for request, fits in _requests(users.catalogue):
        after = _top(masks, users, [request] * count)
        rows.append(Followed(request, float(fits[before].float().mean()), float(fits[after].float().mean())))
    return rows


def _requests(catalogue: Catalogue) -> Iterator[tuple[str, Tensor]]:
    """Yield requests for and against the commonest attributes, for a rare one and for a decade, with what fits them."""
    counts, flags = catalogue.item_attributes.sum(0), catalogue.item_attributes
    order = counts.argsort(descending=True, stable=True).tolist()
    rare = [place for place in order[3:] if counts[place] >= _ENOUGH][-1:]
    for place in [*order[1:3], *rare]:
        yield f"something with {phrase(catalogue.attributes[place])}", flags[:, place]
    decade, years = first_decade(catalogue), years_of(catalogue)
    if decade is not None and years is not None:
        yield f"something from the {decade}s", (years >= decade) & (years < decade + 10)
    for place in order[:2]:
        yield f"no {phrase(catalogue.attributes[place])}, please", ~flags[:, place]


def attribute_shares(
    masks: RequestMaskModel, users: EvaluationUsers, sample: int = SHOWN_USERS
) -> dict[str, tuple[float, float, float]]:
    """Return each attribute's share of the first users' top ten: no request, asked for, asked against."""
    count = min(len(users), sample)

    def worded(family: str, **named: str) -> list[str | None]:
        templates = TEST_TEMPLATES[family]
        return [templates[user % len(templates)].format(**named) for user in range(count)]

    def mean_share(flags: Tensor, items: Tensor) -> float:
        return float(flags[items].float().mean(1).mean())

    frozen, shares = _top(masks, users, [None] * count), {}
    for index, name in enumerate(users.catalogue.attributes):
        flags = users.catalogue.item_attributes[:, index]
        asked = worded("for", wanted=phrase(name)), worded("against", unwanted=phrase(name))
        wanted, unwanted = (_top(masks, users, texts) for texts in asked)
        shares[name] = (mean_share(flags, frozen), mean_share(flags, wanted), mean_share(flags, unwanted))
    return shares


def _top(masks: RequestMaskModel, users: EvaluationUsers, texts: Sequence[str | None]) -> Tensor:
    """Return the top ten of the first users under a text each, (users, 10) int64."""
    lists, size = [], rows_together(len(users.catalogue), max(len(texts), 1))
    with torch.no_grad():
        for start in range(0, len(texts), size):
            rows = slice(start, min(start + size, len(texts)))
            lists.append(top_items(masks(users.item_ids[rows], request=list(texts[rows])), users.seen_by(rows)))
    return torch.cat(lists)
