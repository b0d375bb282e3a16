from __future__ import annotations

from collections import Counter

from benchmark.baselines import ParsedFilter, ShuffledRequests
from hypothesis import given
from hypothesis import strategies as st

blanks = st.sampled_from([None, "", " "])


@given(st.lists(st.one_of(blanks, st.integers()), max_size=12), st.integers(0, 5))
def test_requests_change_places(rows: list[object], seed: int) -> None:
    requests = [f"{row} at {place}" if isinstance(row, int) else row for place, row in enumerate(rows)]
    control = ShuffledRequests(ParsedFilter(), seed)
    shuffled = control.shuffled(requests)  # type: ignore[arg-type]
    assert Counter(map(str, shuffled)) == Counter(map(str, requests))
    assert shuffled == control.shuffled(requests)  # type: ignore[arg-type]
    asked = [place for place, row in enumerate(rows) if isinstance(row, int)]
    for place, request in enumerate(requests):
        if place not in asked:
            assert shuffled[place] == request
        elif len(asked) > 1:
            assert shuffled[place] != request
    assert control.name == "parsed filter, shuffled requests"
