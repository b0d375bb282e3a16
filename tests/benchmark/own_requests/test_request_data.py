from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmark.cells import Cell, CellSettings, DataSource, OwnRequests
from benchmark.data import load_data
from benchmark.own_requests.request_data import RequestData, history_text, request_data, terms

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import SAID


def found(folder: Path, source: str = "stated", hold_out: str | None = None) -> RequestData:
    cell = Cell(
        DataSource(str(folder)), "leave-one-out", "sasrec", "ours", 0, None, CellSettings(), OwnRequests(source)
    )  # type: ignore[arg-type]
    cell = replace(cell, settings=replace(cell.settings, hold_out=hold_out))  # type: ignore[arg-type]
    return request_data(cell, load_data(cell.source, cell.protocol), 4)


def test_stated_requests_belong_to_their_visits(shop: Path) -> None:
    data = found(shop)
    lines = [line.split("\t") for line in (shop / "shop.inter").read_text().splitlines()[1:]]
    texts = {(user, item): text or None for user, item, _, text in lines}
    assert data.texts == tuple(texts[f"u{row}", f"i{int(item)}"] for row, item in enumerate(data.split.test_target))
    assert data.counts.tolist() == [text is not None for text in data.texts]
    assert all(len(history) <= 4 for history, _, _ in data.said)
    asked = sum(bool(text) for (_, _, time, text) in lines if 0 < int(time) < 5)
    assert len(data.said) == asked


def test_the_papers_requests_are_the_texts_of_the_three_items_before(shop: Path) -> None:
    data = found(shop, "history")
    titles = data.catalogue.titles
    user, target = data.split.train[0], data.split.test_target[0]
    history = data.split.history("test")[0]
    assert data.texts[0] is not None
    assert [part.split(" ")[:2] for part in data.texts[0].split("; ")] == [
        titles[i].split() for i in history[-3:].tolist()
    ]
    assert titles[int(target)] not in data.texts[0]
    assert len(data.said) == sum(len(items) - 1 for items in data.split.train)  # a row for each interaction
    before, text, item = data.said[1]
    assert (before.tolist(), item) == (user[:2].tolist(), int(user[2]))
    assert text == history_text(data.catalogue, user[:2])
    assert bool(data.counts.all())


@pytest.mark.parametrize("source", ["stated", "history"])
def test_users_held_out_are_neither_learned_from_nor_described(shop: Path, source: str) -> None:
    data, whole = found(shop, source, "users"), found(shop, source)
    assert len(data.taught.train) == 48
    unseen = {
        row for row in range(60) if not any(torch.equal(whole.split.train[row], own) for own in data.taught.train)
    }
    assert set(data.counts.nonzero().flatten().tolist()) <= unseen
    assert len(data.asked) == 48
    if source == "stated":
        said = sum(text.count("|") + bool(text) for text in data.catalogue.texts[SAID])
        assert said < sum(text.count("|") + bool(text) for text in whole.catalogue.texts[SAID])


def test_words_held_out_occur_nowhere_in_training(shop: Path) -> None:
    data = found(shop, "stated", "texts")
    held = {term for row in data.counts.nonzero().flatten().tolist() for term in terms(data.texts[row] or "")}
    assert held
    taught = {term for _, text, _ in data.said for term in terms(text)}
    described = {term for text in data.catalogue.texts[SAID] for term in terms(text)}
    assert not held & (taught | described | {term for text in data.asked if text for term in terms(text)})
    assert taught


def test_data_without_requests_is_told(folder: Path) -> None:
    with pytest.raises(DataError, match="has no column 'request'"):
        found(folder)


def test_terms_are_parts_between_commas() -> None:
    assert terms(" Killer,  dark  Stalker ; ,") == {"killer", "dark stalker"}
