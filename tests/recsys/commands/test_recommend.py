import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cramer_peft.recsys.recommender import RequestRecommender

HISTORY = "[REC] 0; Tale 4 of war; tale 8"


def test_recommend(made: Path, run: Callable[..., Any]) -> None:
    ended = run(
        "recommend", "--adapter", made, "--history", HISTORY, "--request", "less [/bold]", "--strength", 6, "--k", 5
    )
    assert ended.code == 0, ended
    assert "Recommended under: less [/bold]" in ended.out
    loaded = RequestRecommender.load(made)
    answer = loaded.recommend([0, 4, 8], "less [/bold]", strength=6.0, k=5)
    for item in answer.items:
        assert loaded.catalogue.titles[item] in ended.out
    assert answer.came
    assert ended.out.count("new") == len(answer.came)
    assert "went: " + "; ".join(loaded.catalogue.titles[item] for item in answer.went) in ended.out
    (line,) = [line for line in ended.out.splitlines() if "shares: " in line]
    for name, (before, after) in answer.shares.items():
        assert (f"{name} {before:.0%} → {after:.0%}" in line) == (before != after)


@pytest.mark.parametrize("asked", [(), ("--request", " "), ("--request", "more war", "--strength", "0")])
def test_nothing_asked_changes_nothing(made: Path, run: Callable[..., Any], asked: tuple[str, ...]) -> None:
    ended = run("recommend", "--adapter", made / "adapter", "--history", HISTORY, *asked)
    assert ended.code == 0, ended
    assert "the request changed nothing in this list" in ended.out
    assert "new" not in ended.out
    titles = RequestRecommender.load(made).catalogue.titles
    assert sum(title in ended.out for title in titles) >= 10


def test_more_titles_than_there_are(made: Path, run: Callable[..., Any]) -> None:
    ended = run("recommend", "--adapter", made, "--history", HISTORY, "--request", "more war", "--k", "500")
    assert ended.code == 0, ended
    rows = [line for line in ended.out.splitlines() if "Tale" in line or "[REC]" in line]
    assert len(rows) == 27
    assert not any("[REC] 0 " in line for line in rows)


def test_an_unknown_title_names_near_ones(made: Path, run: Callable[..., Any]) -> None:
    message = run("recommend", "--adapter", made, "--history", "Tail 4 of wars; [REC] 0").message
    assert "No title matches 'Tail 4 of wars'. Nearest: 'Tale 4 of war'" in message


def test_an_ambiguous_title(made: Path, run: Callable[..., Any]) -> None:
    message = run("recommend", "--adapter", made, "--history", "[rec]").message
    assert "3 titles match '[rec]'" in message
    assert "'[REC] 10'" in message  # square brackets are not markup


@pytest.mark.parametrize("history", ["", " ; ;", ";"])
def test_an_empty_history(made: Path, run: Callable[..., Any], history: str) -> None:
    assert "the history is empty" in run("recommend", "--adapter", made, "--history", history).message


def test_every_item_in_the_history(made: Path, run: Callable[..., Any]) -> None:
    titles = RequestRecommender.load(made).catalogue.titles
    assert "0 unseen items" in run("recommend", "--adapter", made, "--history", ";".join(titles)).message


def test_a_missing_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    message = run("recommend", "--adapter", tmp_path / "nowhere", "--history", "x").message
    assert f"{tmp_path / 'nowhere'} is not a recommender folder: catalogue.json is missing" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter/adapter_model.safetensors", "not a readable safetensors file"),
        ("adapter/adapter_config.json", "not readable JSON"),
        ("backbone/model.safetensors", "holds no readable backbone"),
        ("backbone/config.json", "holds no readable backbone"),
        ("catalogue.json", "not a JSON file"),
    ],
)
def test_a_truncated_file(copy: Path, run: Callable[..., Any], name: str, message: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[:-30])
    assert message in run("recommend", "--adapter", copy, "--history", HISTORY).message


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"])
def test_a_missing_adapter_file(copy: Path, run: Callable[..., Any], name: str) -> None:
    (copy / name).unlink()
    assert f"{name} does not exist" in run("recommend", "--adapter", copy, "--history", HISTORY).message


def test_an_adapter_for_another_base(copy: Path, run: Callable[..., Any], edit_json: Callable[..., None]) -> None:
    edit_json(copy / "adapter" / "adapter_config.json", base_fingerprint="0" * 64)
    assert "another base" in run("recommend", "--adapter", copy, "--history", HISTORY).message


def test_an_adapter_of_an_unknown_encoder(copy: Path, run: Callable[..., Any], edit_json: Callable[..., None]) -> None:
    edit_json(copy / "adapter" / "adapter_config.json", encoder="telepathy")
    message = run("recommend", "--adapter", copy, "--history", HISTORY, "--request", "x").message
    assert "'telepathy', which is not registered" in message


@pytest.mark.parametrize("strength", ["nan", "inf"])
def test_a_strength_that_is_no_number(made: Path, run: Callable[..., Any], strength: str) -> None:
    arguments = ("--adapter", made, "--history", HISTORY, "--request", "x", "--strength", strength)
    assert "finite" in run("recommend", *arguments).message


def test_titles_with_semicolons(copy: Path, run: Callable[..., Any], edit_json: Callable[..., None]) -> None:
    titles = json.loads((copy / "catalogue.json").read_text())["titles"]
    titles[1:4] = ["Cat &amp; Dog", "Dogma", "Left; Right"]
    edit_json(copy / "catalogue.json", titles=titles)
    for path in copy.rglob("catalogue_digest.json"):
        path.unlink()
    loaded = RequestRecommender.load(copy)
    for history, items in (("Cat &amp; Dog; left;right", [1, 3]), ("item_id=2; Cat & D", [2, 1])):
        ended = run("recommend", "--adapter", copy, "--history", history, "--k", 28)
        assert ended.code == 0, ended
        for item in range(30):
            assert (f" {loaded.catalogue.titles[item]} " in ended.out) != (item in items), item


def test_a_request_that_is_not_utf8(made: Path, run: Callable[..., Any]) -> None:
    message = run("recommend", "--adapter", made, "--history", HISTORY, "--request", "fun\udcff").message
    assert "expected a text that can be written as UTF-8" in message
    assert (
        "not finite"
        in run(
            "recommend", "--adapter", made, "--history", HISTORY, "--request", "less war", "--strength", "1e38"
        ).message
    )


# --- what was heard

NOTHING = "the list is the one without a request"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("--request", "more war"), "heard: wanted: war"),
        (("--request", "qwzx vfff war please"), "heard: wanted: war · not understood: qwzx vfff"),
        (("--request", "no film noir"), "heard: unwanted: film noir"),
        (("--request", "hwzqx"), f"heard: nothing understood (hwzqx): {NOTHING}"),
        (("--request", "surprise me"), f"heard: nothing understood: {NOTHING}"),
        (("--request", "less of that", "--before", "something with war"), "heard: unwanted: war"),
        (("--request", "no film noir", "--before", "x", "--before", "war"), "heard: wanted: war · unwanted: film noir"),
        (("--request", "hwzqx", "--before", "qwzx"), f"heard: nothing understood (hwzqx): {NOTHING}"),
    ],
)
def test_it_says_what_it_heard(hearing: Path, run: Callable[..., Any], asked: tuple[str, ...], line: str) -> None:
    ended = run("recommend", "--adapter", hearing, "--history", HISTORY, *asked)
    assert ended.code == 0, ended
    assert [text.strip() for text in ended.out.splitlines() if "heard:" in text] == [line]
    assert ("the request changed nothing in this list" in ended.out) == (NOTHING in line)


def test_without_a_request_nothing_is_heard(hearing: Path, run: Callable[..., Any]) -> None:
    for asked in ((), ("--request", " ")):
        assert "heard" not in run("recommend", "--adapter", hearing, "--history", HISTORY, *asked).out


def test_earlier_requests_that_cannot_be_read(made: Path, hearing: Path, run: Callable[..., Any]) -> None:
    asked = ("--history", HISTORY, "--before", "more war")
    message = run("recommend", "--adapter", made, *asked, "--request", "less of that").message
    assert "this adapter's encoder reads one request alone" in message
    for request in ((), ("--request", " ")):
        message = run("recommend", "--adapter", hearing, *asked, *request).message
        assert "earlier requests without a request" in message
