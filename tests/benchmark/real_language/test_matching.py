import pytest
import torch
from benchmark.real_language.matching import match_requests
from benchmark.real_language.requests_file import RedialRequest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue


def make_catalogue(*titles: str, ids: tuple[str, ...] | None = None) -> Catalogue:
    names = ids or tuple(f"i{index}" for index in range(len(titles)))
    return Catalogue(names, titles, (), torch.zeros(len(titles), 0, dtype=torch.bool))


def ask(target: str, *history: str, dialogue: str = "1", request: str = "Anything like [movie]?") -> RedialRequest:
    return RedialRequest(dialogue, history, request, target)


def test_matching() -> None:
    catalogue = make_catalogue("Heat (1995)", "Matrix, The (1999)", "Up (2009)", "It (1990)", "It (2017)")
    requests = [
        ask("Up (2009)", "The Matrix", "Unknown (1999)", "Matrix, The (1999)", "Heat", dialogue="d", request="r"),
        ask("Down (2009)", "Heat"),
        ask("It", "Heat"),
        ask("Heat (1995)", "It", "heat"),
        ask("Up", "It"),
        ask("It (1990)", "It (2017)"),
    ]
    matched = match_requests(requests, catalogue)
    assert len(matched) == 2
    assert [history.tolist() for history in matched.histories] == [[1, 0], [4]]
    assert matched.targets.tolist() == [2, 3]
    assert matched.targets.dtype == matched.histories[0].dtype == torch.long
    assert (matched.requests, matched.dialogues) == (("r", "Anything like [movie]?"), ("d", "1"))
    report = matched.report
    assert (report.kept, report.target_unknown, report.target_ambiguous) == (2, 1, 1)
    assert (report.target_seen, report.short_history, report.requests) == (1, 1, 6)
    assert (report.history_titles, report.history_matched, report.history_ambiguous) == (10, 7, 2)
    assert report.targets_matched == 4
    assert (report.target_rate, report.history_rate) == (4 / 6, 7 / 10)


def test_length_of_histories() -> None:
    catalogue = make_catalogue("Heat (1995)", "Up (2009)", "It (1990)")
    requests = [ask("Up"), ask("Up", "Heat"), ask("Up", "Heat", "It")]
    assert [len(match_requests(requests, catalogue, min_history=n)) for n in (0, 1, 2)] == [3, 2, 1]
    assert [row.tolist() for row in match_requests(requests, catalogue, min_history=0).histories] == [[], [0], [0, 2]]
    with pytest.raises(DataError, match=r"No request can be kept .*short_history=3"):
        match_requests(requests, catalogue, min_history=3)


def test_nothing_to_match() -> None:
    with pytest.raises(DataError, match="requests: found none"):
        match_requests([], make_catalogue("a"))
    with pytest.raises(DataError, match="min_history: found -1"):
        match_requests([ask("a")], make_catalogue("a"), min_history=-1)


titles = st.sampled_from(["Heat", "Heat (1995)", "Heat (1986)", "Up", "Up (2009)", "It, The", "Gone (2012)"])


@given(st.lists(st.builds(ask, titles, titles, titles), min_size=1, max_size=9), st.integers(0, 2))
def test_no_target_in_its_history_and_every_request_counted_once(requests: list[RedialRequest], least: int) -> None:
    catalogue = make_catalogue("Heat (1995)", "Heat (1986)", "Up (2009)", "The It", "Other")
    matched = match_requests([*requests, ask("Other", "Heat (1995)", "Up")], catalogue, min_history=least)
    assert matched.report.requests == len(requests) + 1
    assert matched.report.kept == len(matched) == len(matched.targets) == len(matched.histories)
    for history, target in zip(matched.histories, matched.targets.tolist(), strict=True):
        assert target not in history.tolist()
        assert least <= len(history) == len(set(history.tolist()))
