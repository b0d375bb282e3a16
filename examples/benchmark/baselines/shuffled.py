"""The control of all methods: every row gets another row's request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmark.baselines.ranker import RankerTask, RequestRanker, request_rows


class ShuffledRequests:
    """A ranker whose requests change places within each call, so that no row keeps its own.

    Rows without a request keep none. A call with a single request keeps it: there is nothing to exchange it with.

    Args:
        ranker: The method to control; fitted or to be fitted.
        seed: Seed of the exchange; equal calls are exchanged equally.
    """

    def __init__(self, ranker: RequestRanker, seed: int = 0) -> None:
        self.name = f"{ranker.name}, shuffled requests"
        self._ranker = ranker
        self._seed = seed

    @property
    def trainable(self) -> int:
        """Number of parameters that the ranker trains."""
        return self._ranker.trainable

    def fit(self, task: RankerTask) -> None:
        """Fit the ranker, on requests that are not shuffled."""
        self._ranker.fit(task)

    def scores(self, histories: Tensor, requests: Sequence[str | None]) -> Tensor:
        """Return the ranker's scores under exchanged requests, (rows, items)."""
        return self._ranker.scores(histories, self.shuffled(requests))

    def shuffled(self, requests: Sequence[str | None]) -> list[str | None]:
        """Return the requests as the ranker gets them."""
        rows = request_rows(requests)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self._seed)).tolist()
        exchanged = list(requests)
        # in a circle of random order, each row takes its neighbour's request
        for taker, giver in zip(order, [*order[1:], *order[:1]], strict=True):
            exchanged[rows[taker]] = requests[rows[giver]]
        return exchanged
