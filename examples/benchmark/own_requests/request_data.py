"""Who said what: the requests of training visits, of validation and of the users measured, with hold-outs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmark.cells import Cell, OwnRequests
from benchmark.data import LoadedData, load_stated
from benchmark.measures.tracks import HELD_OUT, hold_out, taught_split
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.data.catalogue import SAID, Catalogue
from cramer_peft.recsys.data.own_data import said_before, with_said
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.attribute_requests import item_text

LAST = 3  # items whose texts a request of the paper holds
_PARTS = re.compile(r"[,;|]")

Visit = tuple[Tensor, str, int]  # the history before, the text, the item met
Texts = tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class RequestData:
    """The data of one study.

    Attributes:
        catalogue: The items; what was said of them holds nothing that is kept from training.
        split: The whole split.
        taught: The part that methods learn from.
        said: The requests of the training visits.
        asked: The request of each validation target of ``taught``, or None.
        texts: The request of each target of the study's stage, or None.
        counts: The users who are measured, (users,) bool.
    """

    catalogue: Catalogue
    split: Split
    taught: Split
    said: tuple[Visit, ...]
    asked: Texts
    texts: Texts
    counts: Tensor


def request_data(cell: Cell, data: LoadedData, length: int) -> RequestData:
    """Return the requests of a cell's study.

    Args:
        cell: The cell; its study is of own requests.
        data: Its data.
        length: Longest history that the backbone reads.

    Raises:
        ConfigError: If the split is by time and users are to be held out.
        DataError: If the data states no request, or nobody is left to measure.
    """
    study, seed = cell.study, cell.seed
    assert isinstance(study, OwnRequests)
    if study.source == "stated":
        own = load_stated(cell.source, cell.protocol)
        catalogue, split, spoken = own.catalogue, own.split, own.training_requests()
        texts, asked = own.own_requests(study.stage) or (), own.own_requests("validation") or ()
    else:
        catalogue, split = data.catalogue, data.split
        spoken = tuple(_texts_before(catalogue, items) for items in split.train)
        texts, asked = (
            tuple(history_text(catalogue, history) for history in split.history(stage))
            for stage in (study.stage, "validation")
        )
    counts, taught = torch.tensor([text is not None for text in texts]), split
    if cell.settings.hold_out == "users":
        if cell.protocol != "leave-one-out":
            raise ConfigError(f"variant: {cell.variant!r} holds out users, which needs the split leave-one-out.")
        taught, unseen = taught_split(split, True, seed)
        assert unseen is not None
        rows, counts = (~unseen).nonzero().flatten().tolist(), counts & unseen
        spoken, asked = tuple(spoken[row] for row in rows), tuple(asked[row] for row in rows)
    if cell.settings.hold_out == "texts":
        held = held_out_terms([text for own_texts in (*spoken, texts) for text in own_texts if text], seed)
        spoken = tuple(tuple(_unless(text, held) for text in row) for row in spoken)
        asked = tuple(_unless(text, held) for text in asked)
        counts = counts & torch.tensor([text is not None and terms(text) <= held for text in texts])
    if not bool(counts.any()):
        raise DataError(
            f"{cell.source.name}: nobody who states a request in {study.stage} is left"
            f"{'' if cell.variant is None else f' by the hold-out {cell.variant!r}'}. Use another stage or data."
        )
    if study.source == "stated":
        others = {name: column for name, column in catalogue.texts.items() if name != SAID}  # it may be of all users
        catalogue = with_said(replace(catalogue, texts=others), taught, spoken)
    said = tuple(said_before(taught, spoken, length))
    return RequestData(catalogue, split, taught, said, asked, texts, counts)


def stated_visits(cell: Cell, taught: Split) -> tuple[Visit, ...]:
    """Return the requests that a cell's data states for the training visits of a part of its split.

    Raises:
        ConfigError: If users are held out, whose requests only the matrix "stated" can tell.
        DataError: If the data states no request.
    """
    if cell.settings.hold_out == "users":
        raise ConfigError("requests: found stated with users held out, which the matrix 'stated' measures. Use that.")
    own = load_stated(cell.source, cell.protocol)
    return tuple(said_before(taught, own.training_requests()))


def history_text(catalogue: Catalogue, history: Tensor) -> str:
    """Return the paper's request: the texts (title, attributes, other columns) of the last three items."""
    return "; ".join(_item_text(catalogue, item) for item in history[-LAST:].tolist())


def _texts_before(catalogue: Catalogue, items: Tensor) -> Texts:
    return tuple(history_text(catalogue, items[:place]) if place else None for place in range(len(items)))


def _item_text(catalogue: Catalogue, item: int) -> str:
    texts = (column[item].replace("|", " ") for name, column in catalogue.texts.items() if name != SAID)
    return " ".join(filter(None, [item_text(catalogue, item), *texts]))


# ---------------------------------------------------------------- terms held out


def terms(text: str) -> frozenset[str]:
    """Return what a request names: its parts between commas, without case and repeated spaces."""
    return frozenset(filter(None, (" ".join(part.split()).casefold() for part in _PARTS.split(text))))


def held_out_terms(texts: Iterable[str], seed: int) -> frozenset[str]:
    """Return a fifth of all terms, drawn by a seed.

    Raises:
        DataError: If there are fewer than two.
    """
    return frozenset(hold_out(sorted({term for text in texts for term in terms(text)}), HELD_OUT, seed)[1])


def _unless(text: str | None, held: frozenset[str]) -> str | None:
    return None if text is None or terms(text) & held else text
