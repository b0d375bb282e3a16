"""Filters: items that satisfy the request come first, in the frozen model's order.

They are ceilings on simulated requests, which name attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from benchmark.baselines.parsing import RequestParser
from benchmark.baselines.ranker import BaselineRanker, RankerTask
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.matching import match_scores

_Meaning = Callable[[str], AttributeRequest]


class _Filter(BaselineRanker):
    """A ranker that orders items by how well they match, and equal ones by the frozen scores."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._catalogue: Catalogue | None = None
        self._meaning: _Meaning | None = None

    def _request_scores(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self._catalogue is not None
        assert self._meaning is not None
        requests = [self._meaning(text) for text in texts]
        match = match_scores(requests, self._catalogue.attributes, self._catalogue.item_attributes).to(frozen)
        # match has steps of 1/6 or more (thirds and halves); one step outweighs any difference of frozen scores
        span = frozen.amax(1, keepdim=True) - frozen.amin(1, keepdim=True)
        return frozen + match * 8 * (span + 1)


class ParsedFilter(_Filter):
    """A filter by the attributes that :class:`RequestParser` reads in the text; without any, nothing changes."""

    def __init__(self) -> None:
        super().__init__("parsed filter")

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        self._catalogue, self._meaning = task.catalogue, RequestParser(task.catalogue.attributes)


class OracleFilter(_Filter):
    """A filter by the attributes that the simulated request was made from: a ceiling, not a method.

    It cannot read a text; :meth:`know` gives it the meanings.
    """

    def __init__(self) -> None:
        super().__init__("oracle filter")
        self._known: dict[str, AttributeRequest] = {}

    def know(self, *tracks: Sequence[AttributeRequest]) -> OracleFilter:
        """Remember the meanings of texts; return itself.

        Args:
            *tracks: The requests that it will get.

        Raises:
            DataError: If one text has two meanings.
        """
        for request in (request for track in tracks for request in track):
            known = self._known.setdefault(request.text, request)
            if {*known.wanted} != {*request.wanted} or {*known.unwanted} != {*request.unwanted}:
                raise DataError(
                    f"the text {request.text!r} has two meanings: {known.wanted} without {known.unwanted}, and "
                    f"{request.wanted} without {request.unwanted}. Use one oracle for each."
                )
        return self

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        self._catalogue, self._meaning = task.catalogue, self._look_up

    def _look_up(self, text: str) -> AttributeRequest:
        try:
            return self._known[text]
        except KeyError:
            raise DataError(f"the oracle does not know the meaning of {text!r}: call know(requests) first.") from None
