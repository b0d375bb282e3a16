"""Filters: what satisfies the request comes first, in the frozen model's order. Ceilings on simulated requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from benchmark.baselines.baseline import BaselineRanker, RankerTask
from benchmark.baselines.parsing import RequestParser
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.requests.attributes import AttributeRequest, match_scores

_Meaning = Callable[[str], AttributeRequest]


class _Filter(BaselineRanker):
    """Orders by how well items match, and among equals by the frozen scores."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._catalogue: Catalogue | None = None
        self._meaning: _Meaning | None = None

    def _asked(self, histories: Tensor, texts: Sequence[str], frozen: Tensor) -> Tensor:
        assert self._catalogue is not None
        assert self._meaning is not None
        requests = [self._meaning(text) for text in texts]
        match = match_scores(requests, self._catalogue.attributes, self._catalogue.item_attributes).to(frozen)
        # match goes in steps of 1/6 or more (thirds and halves); one step outweighs any difference of frozen scores
        span = frozen.amax(1, keepdim=True) - frozen.amin(1, keepdim=True)
        return frozen + match * 8 * (span + 1)


class ParsedFilter(_Filter):
    """Filters by what :class:`RequestParser` reads in the text; a text that names nothing changes nothing."""

    def __init__(self) -> None:
        super().__init__("parsed filter")

    def _fit(self, task: RankerTask, frozen: SASRec) -> None:
        self._catalogue, self._meaning = task.catalogue, RequestParser(task.catalogue.attributes)


class OracleFilter(_Filter):
    """Filters by what the simulated request was made from: a ceiling, not a method.

    A text alone does not tell; :meth:`know` says what each means.
    """

    def __init__(self) -> None:
        super().__init__("oracle filter")
        self._known: dict[str, AttributeRequest] = {}

    def know(self, *tracks: Sequence[AttributeRequest]) -> OracleFilter:
        """Remember what texts mean; returns itself.

        Args:
            *tracks: The requests that will be asked.

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
            raise DataError(f"the oracle does not know what {text!r} means: call know(requests) first.") from None
