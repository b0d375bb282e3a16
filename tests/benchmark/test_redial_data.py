import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark import redial_data as redial
from benchmark.redial_data import (
    RedialRequest,
    TitleIndex,
    match_requests,
    read_redial,
    read_years,
    split_year,
    title_key,
)
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue

GOOD: dict[str, Any] = {"dialogue": "7", "history": ["Heat (1995)"], "request": "like [movie]", "target": "Up (2009)"}


def make_catalogue(*titles: str, ids: tuple[str, ...] | None = None) -> Catalogue:
    names = ids or tuple(f"i{index}" for index in range(len(titles)))
    return Catalogue(names, titles, (), torch.zeros(len(titles), 0, dtype=torch.bool))


def ask(target: str, *history: str, dialogue: str = "1", request: str = "Anything like [movie]?") -> RedialRequest:
    return RedialRequest(dialogue, history, request, target)


# --- titles


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Big Lebowski, The", "The Big Lebowski"),
        ("Avventura, L'", "L\u2019Avventura"),
        ("AMÉLIE", "Amelie"),
        ("Fast & Furious", "Fast and Furious"),
        ("Star Wars: Episode IV - A New Hope", "star wars  episode iv: a new hope"),
        ("Ocean's Eleven", "Oceans Eleven"),
        ("WALL\u00b7E", "wall-e"),
    ],
)
def test_spellings_that_are_one(one: str, other: str) -> None:
    assert title_key(one) == title_key(other) != ""


@pytest.mark.parametrize(("one", "other"), [("Alien", "Aliens"), ("It", "It Follows"), ("Rocky II", "Rocky III")])
def test_spellings_that_are_two(one: str, other: str) -> None:
    assert title_key(one) != title_key(other)


@given(st.text(max_size=40))
def test_a_key_is_its_own_key(title: str) -> None:
    assert title_key(title_key(title)) == title_key(title)


@given(st.from_regex(r"[A-Za-z][a-z ]{0,20}", fullmatch=True), st.integers(1000, 9999))
def test_years_come_off(title: str, year: int) -> None:
    assert split_year(f"{title} ({year}) ") == (title.strip(), year)
    assert split_year(title) == (title.strip(), None)


@pytest.mark.parametrize("title", ["1941", "(2012)", "Se7en (1)", "X (19950)", "X (1995) again"])
def test_no_year_at_the_end(title: str) -> None:
    assert split_year(title) == (title, None)


def test_long_titles_take_no_time() -> None:
    for title in (" " * 9_000 + "x", "(" * 9_000, ", a" * 3_000, "a.k.a." + " " * 9_000):
        assert split_year(title)[1] is None
        title_key(title)
        TitleIndex(make_catalogue(title))


def test_years_tell_remakes_apart() -> None:
    index = TitleIndex(make_catalogue("Sabrina", "Sabrina", "Up"), years=[1954, 1995, None])
    assert index.find("Sabrina (1995)") == (1,)
    assert index.find("sabrina") == (0, 1)
    assert index.find("Sabrina (2001)") == ()
    assert index.find("Up (2009)") == (2,)  # its year is not known, so it is not another one
    assert index.find("Down") == index.find("") == index.find("?!") == ()


def test_years_out_of_titles_and_ids() -> None:
    assert TitleIndex(make_catalogue("Heat (1995)", "Heat (1986)")).find("Heat (1986)") == (1,)
    ids = ("Heat (1995)", "Heat (1986)")
    assert TitleIndex(make_catalogue("Heat", "Heat", ids=ids)).find("Heat (1995)") == (0,)


@pytest.mark.parametrize(
    "name",
    ["Seven (1995)", "Se7en (1995)", "seven a.k.a. se7en (crimes, the) (1995)", "The Crimes (1995)", "Crimes, The"],
)
def test_other_names_in_brackets(name: str) -> None:
    assert TitleIndex(make_catalogue("Seven (a.k.a. Se7en) (Crimes, The) (1995)")).find(name) == (0,)


def test_years_must_fit() -> None:
    with pytest.raises(DataError, match="years: found 1, expected one for each of the 2 items"):
        TitleIndex(make_catalogue("a", "b"), years=[1999])


# --- matching


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


# --- the file


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", GOOD, {**GOOD, "history": [], "request": "", "target": "Amélie (2001)"})
    assert read_redial(path) == (
        RedialRequest("7", ("Heat (1995)",), "like [movie]", "Up (2009)"),
        RedialRequest("7", (), "", "Amélie (2001)"),
    )
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert len(read_redial(path)) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], r"found \[1\], expected an object with exactly dialogue, history, request, target"),
        ({"dialogue": "7"}, r"found \['dialogue'\], expected an object"),
        ({**GOOD, "more": 1}, r"found \['dialogue', .*\], expected an object with exactly"),
        ({**GOOD, "dialogue": 7}, "dialogue: found 7, expected text that is not blank"),
        ({**GOOD, "target": " "}, "target: found ' ', expected text that is not blank"),
        ({**GOOD, "request": None}, "request: found None, expected text of at most"),
        ({**GOOD, "request": "x" * 10_001}, "request: found 'x.*at most 10000 characters"),
        ({**GOOD, "history": "Heat"}, "history: expected a list of at most 1000 titles"),
        ({**GOOD, "history": ["a"] * 1001}, "history: expected a list of at most 1000 titles"),
        ({**GOOD, "history": ["a", 5]}, r"history\[1\]: found 5"),
        ({**GOOD, "history": ["a", ""]}, r"history\[1\]: found ''"),
    ],
)
def test_bad_records(tmp_path: Path, record: object, message: str) -> None:
    path = write(tmp_path / "r.jsonl", GOOD, record)
    with pytest.raises(DataError, match=rf"r\.jsonl, line 2: {message}"):
        read_redial(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"{}\n\n", r"line 1: found \[\]"),
        (b"\n", "line 1: not a JSON object"),
        (b"\xff\n", "line 1: not a JSON object in UTF-8"),
        (b'{"dialogue": "1", "dialogue": "2"}', "a key is there twice"),
        (b"[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_redial(path)


def test_no_file_and_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_redial(tmp_path / "absent")
    with pytest.raises(DataError, match="not an ordinary file"):
        read_redial(tmp_path)
    monkeypatch.setattr(redial, "MAX_REDIAL_BYTES", 20)
    with pytest.raises(DataError, match="larger than the 20 bytes"):
        read_redial(write(tmp_path / "r.jsonl", GOOD))


# --- years


@pytest.mark.parametrize("kind", ["token", "float"])
def test_years_of_an_item_file(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "a.item"
    path.write_text(f"item_id:token\trelease_year:{kind}\na\t1995\nb\t\nc\t2001\n")
    assert read_years(path) == (1995, None, 2001)
    with pytest.raises(DataError, match=r"a\.item: fields missing: year; fields there: item_id, release_year"):
        read_years(path, column="year")


@pytest.mark.parametrize(("kind", "value"), [("token", "about 1990"), ("float", "1995.5"), ("float", "-3")])
def test_bad_years(tmp_path: Path, kind: str, value: str) -> None:
    pytest.importorskip("pandas")
    path = tmp_path / "a.item"
    path.write_text(f"item_id:token\trelease_year:{kind}\na\t1995\nb\t{value}\n")
    with pytest.raises(DataError, match=r"a\.item, line 3: the year is '.*', expected a whole number"):
        read_years(path)
