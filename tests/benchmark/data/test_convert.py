"""Each converter on a few lines of the format that its data's authors document."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from benchmark.console import make_app
from benchmark.data.__main__ import convert
from benchmark.data.convert import Interaction, convert_amazon, convert_kuaisar, convert_redial, core
from typer.testing import CliRunner

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.own_data import load_own_data

pytest.importorskip("pandas")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def kuaisar(folder: Path) -> Path:
    folder.mkdir()
    rec = {"duration_ms": 1.0, "playing_time": 2.0, "forward": 0, "like": 0, "follow": 0, "search": 0}
    write_csv(
        folder / "rec_inter.csv",
        [
            {"user_id": 1, "item_id": 7, "timestamp": 1.684742e12, "time": "2023-05-22 15:53:20", "click": 1, **rec},
            {"user_id": 1, "item_id": 8, "timestamp": 1.684743e12, "time": "2023-05-22 16:10:00", "click": 0, **rec},
            {"user_id": 1, "item_id": 9, "timestamp": 1.684741e12, "time": "2023-05-22 15:36:40", "click": 1, **rec},
        ],
    )
    found = {"search_session_id": 3, "item_type": "NORMAL", "search_source": "USER_INPUT", "user_id": 1}
    write_csv(
        folder / "src_inter.csv",
        [
            {"keyword": "[11, 20]", "item_id": 8, "click_cnt": 2, "search_session_timestamp": 1684744000000, **found},
            {"keyword": "[5]", "item_id": 9, "click_cnt": 0, "search_session_timestamp": 1684745000000, **found},
        ],
    )
    names = dict.fromkeys(("third_level_category_name_en", "fourth_level_category_name_en"), "empty")
    write_csv(
        folder / "item_features.csv",
        [
            {
                "item_id": item,
                "caption": caption,
                "first_level_category_name_en": "Funny",
                "second_level_category_name_en": "Funny joke",
                **names,
            }
            for item, caption in ((7, "[20, 3]"), (8, "[11]"), (9, "[]"), (10, "[1]"))
        ],
    )
    return folder


def test_kuaisar_clicks_become_visits_and_keywords_requests(tmp_path: Path) -> None:
    target = convert_kuaisar(kuaisar(tmp_path / "raw"), tmp_path / "ks", least=1)
    seen = table(target / "ks.inter")
    assert [(row["item_id:token"], row["request:token_seq"]) for row in seen] == [
        ("9", ""),
        ("7", ""),
        ("8", "w11 w20"),
    ]
    assert seen[1]["timestamp:float"] == "1684742000.000"
    items = {row["item_id:token"]: row for row in table(target / "ks.item")}
    assert set(items) == {"7", "8", "9"}
    assert items["7"]["title:token_seq"] == "w20 w3"
    assert items["9"]["title:token_seq"] == "video 9"
    assert items["8"]["categories:str"] == "Funny|Funny joke"


def test_amazon_joins_reviews_and_items_by_the_parent(tmp_path: Path) -> None:
    rows = [
        {"rating": 5.0, "title": "ok", "text": "nice\ttab", "images": [], "asin": f"v{item}", "parent_asin": f"p{item}",
         "user_id": f"u{user}", "timestamp": 1588687728923 + 1000 * item, "helpful_vote": 0, "verified_purchase": True}
        for user in range(3) for item in range(3)
    ]  # fmt: skip
    meta = [
        {"main_category": "All Beauty", "title": f"Cream\t{item}", "average_rating": 4.8, "rating_number": 10,
         "features": ["soft"], "description": [], "price": None, "images": [], "videos": [], "store": "Howard",
         "categories": ["Skin Care", "Face"] if item else [], "details": {}, "parent_asin": f"p{item}"}
        for item in range(4)
    ]  # fmt: skip
    reviews, metadata = tmp_path / "Beauty.jsonl.gz", tmp_path / "meta_Beauty.jsonl"
    with gzip.open(reviews, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n")
    metadata.write_text("\n".join(map(json.dumps, meta)) + "\n")
    target = convert_amazon(reviews, metadata, tmp_path / "beauty", least=3)
    assert table(target / "beauty.inter")[0] == {
        "user_id:token": "u0", "item_id:token": "p0", "timestamp:float": "1588687728.923", "rating:float": "5",
    }  # fmt: skip
    items = {row["item_id:token"]: row for row in table(target / "beauty.item")}
    assert set(items) == {"p0", "p1", "p2"}
    assert (items["p1"]["title:token_seq"], items["p1"]["categories:str"]) == ("Cream 1", "Skin Care|Face")
    assert (items["p0"]["categories:str"], items["p0"]["brand:token_seq"]) == ("All Beauty", "Howard")
    catalogue, interactions = load_dataset(target, min_attribute_items=1)
    assert (len(catalogue), len(interactions)) == (3, 3)
    assert {"Skin Care", "Face"} <= set(catalogue.attributes)
    with pytest.raises(DataError, match="no interaction with a known item is left"):
        convert_amazon(reviews, metadata, tmp_path / "none", least=4)


def dialogue(**changes: Any) -> dict[str, Any]:
    texts = [
        (0, "Hi, I loved @101 and @102"), (1, "Have you seen @103 ?"), (0, "No. Something funnier than @101"),
        (1, "Then @104 or @105"), (0, "Great, thanks"),
    ]  # fmt: skip
    labels = {movie: {"suggested": 1, "seen": 0, "liked": liked} for movie, liked in
              (("101", 1), ("102", 1), ("103", 0), ("104", 1), ("105", 2))}  # fmt: skip
    row = {
        "conversationId": 391, "initiatorWorkerId": 0, "respondentWorkerId": 1,
        "movieMentions": {"101": "Alien (1979)", "102": "Heat (1995)", "103": "Up (2009)", "104": "Airplane! (1980)",
                          "105": None},
        "initiatorQuestions": labels, "respondentQuestions": labels,
        "messages": [{"timeOffset": n, "text": text, "senderWorkerId": who, "messageId": 1000 + n}
                     for n, (who, text) in enumerate(texts)],
    }  # fmt: skip
    return {**row, **changes}


def test_redial_sequences_hold_liked_films_with_what_was_said_before(tmp_path: Path) -> None:
    path = tmp_path / "train_data.jsonl"
    nothing = dialogue(conversationId=392, movieMentions=[], initiatorQuestions=[])
    path.write_text(json.dumps(dialogue()) + "\n\n" + json.dumps(nothing) + "\n")
    target = convert_redial([path], tmp_path / "redial")
    seen = table(target / "redial.inter")
    assert [row["item_id:token"] for row in seen] == ["101", "102", "104"]
    assert [row["request:token_seq"] for row in seen] == [
        "", "", "Hi, I loved Alien (1979) and Heat (1995) No. Something funnier than Alien (1979)",
    ]  # fmt: skip
    assert {row["user_id:token"] for row in seen} == {"391"}
    assert table(target / "redial.item")[0]["release_year:token"] == "1979"


def test_what_was_converted_can_be_loaded_with_its_requests(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = []
    for number in range(16):
        films = {str(100 + number + step): f"Film {number + step} (2000)" for step in range(5)}
        labels = {film: {"suggested": 1, "seen": 1, "liked": 1} for film in films}
        messages = [
            {"timeOffset": n, "text": f"what of @{film}", "senderWorkerId": n % 2, "messageId": n}
            for n, film in enumerate(films)
        ]
        rows.append(dialogue(conversationId=number, movieMentions=films, initiatorQuestions=labels, messages=messages))
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load_own_data(convert_redial([path], tmp_path / "films"), attributes=False)
    assert data.states_requests
    assert len(data.catalogue) == 20
    assert [text for text in data.own_requests("test") or () if text] == []  # the last film is the seeker's own
    assert data.said()[0][1] == "what of Film 0 (2000)"


def test_the_core_leaves_out_until_all_have_enough() -> None:
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "z"), ("a", "x")]
    found = core([Interaction(user, item, time) for time, (user, item) in enumerate(pairs)], 2)
    assert [(one.user, one.item) for one in found] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rec_inter.csv", "user_id,item_id\n1,2\n", "expected timestamp, click too"),
        ("rec_inter.csv", None, "cannot be"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    folder = kuaisar(tmp_path / "raw")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        convert_kuaisar(folder, tmp_path / "ks")


def test_the_command_converts_and_refuses(tmp_path: Path) -> None:
    arguments = ["kuaisar", str(kuaisar(tmp_path / "raw")), "--output", str(tmp_path / "ks"), "--least", "1"]
    assert CliRunner().invoke(make_app(convert), arguments).exit_code == 0
    assert (tmp_path / "ks" / "ks.inter").exists()
    ended = CliRunner().invoke(make_app(convert), ["amazon", "x", "--output", str(tmp_path / "no")])
    assert "expected kuaisar FOLDER" in str(ended.exception)
