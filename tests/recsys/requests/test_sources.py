from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest
from cramer_peft.recsys.requests.sources import (
    AttributeSource,
    Drawn,
    EmptySource,
    HistorySource,
    MixedSource,
    PhraseSource,
    SaidSource,
    Window,
    check_weights,
    read_weights,
)
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator, request_source

WINDOW = Window([0, 1, 2], [1, 2, 3])
SAID = [([4, 5], "a soft one", 6), (torch.tensor([7]), "a loud one", 8)]


@dataclass(frozen=True, eq=False)
class Told(Catalogue):
    """A catalogue with further texts, as the field of that name."""

    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)


@pytest.fixture
def told() -> Told:
    titles = tuple(f"{('Red', 'Blue')[item % 2]} tale {item}" for item in range(20))
    tags = tuple("slow burn|road trip" if item % 4 == 0 else "" for item in range(20))
    return Told(tuple(map(str, range(20))), titles, (), torch.zeros(20, 0, dtype=torch.bool), texts={"tags": tags})


def draws(source: Any, count: int = 200) -> list[Drawn]:
    rng = random.Random(0)
    return [source.draw(WINDOW, rng) for _ in range(count)]


def matched(drawn: Drawn) -> Tensor:
    assert callable(drawn.match)
    return drawn.match(None)


def test_what_was_said_comes_with_its_history_and_its_item() -> None:
    features = torch.nn.functional.one_hot(torch.arange(12) % 3, 3)
    for drawn in draws(SaidSource(SAID, 12, features), 20):
        place = 0 if drawn.text == "a soft one" else 1
        _, text, item = SAID[place]
        assert drawn.text == text
        assert drawn.window == (Window([7], [8]) if place else Window([4, 5], [5, 6]))
        assert (drawn.position, drawn.true) == (-1, False)
        assert matched(drawn)[item] == 1
        assert matched(drawn).tolist() == pytest.approx([float(other % 3 == item % 3) for other in range(12)])
        assert drawn.match(torch.tensor([item, 0])).tolist() == pytest.approx([1, float(item % 3 == 0)])  # type: ignore[operator]
    alone = matched(draws(SaidSource(SAID, 12), 1)[0])
    assert alone.sum() == alone.max() == 1


def test_only_near_items_are_alike() -> None:
    near = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.5, 0.75**0.5], [-1.0, 0.0]])
    found = matched(draws(SaidSource([([1], "it", 0)], 4, near), 1)[0])
    assert found.tolist() == pytest.approx([1, 0.6561, 0.0625, 0], abs=1e-4)


def test_nothing_that_cannot_be_learnt_is_kept() -> None:
    assert len(SaidSource([*SAID, ([1], "  ", 2), ([], "first visit", 3)], 12).said) == 2
    with pytest.raises(DataError, match="no text with a history"):
        SaidSource([([], "first visit", 3)], 12)
    with pytest.raises(DataError, match="item index 12 is not in"):
        SaidSource([([1], "it", 12)], 12)
    with pytest.raises(DataError, match="item index 12 is not in"):
        SaidSource([([12], "it", 1)], 12)
    assert SaidSource(SAID, 12).fingerprint() != SaidSource(SAID[:1], 12).fingerprint()


def test_phrases_of_the_items_own_texts(told: Told) -> None:
    source = PhraseSource(told, TRAIN_TEMPLATES, random_share=0.5)
    assert set(source.members) == {"slow", "burn", "slow burn", "road", "trip", "road trip"}  # half are red: too many
    found = draws(source)
    for drawn in found:
        names = [name for name in source.members if name in drawn.text]
        match = matched(drawn)
        assert names
        assert match[::4].abs().min() == 1
        assert match.count_nonzero() == 5
        assert torch.equal(drawn.match(torch.tensor([3, 4])), match[[3, 4]])  # type: ignore[operator]
    assert not any(drawn.true for drawn in found)  # no next item has one
    sides = Counter(float(matched(drawn).sum().sign()) for drawn in found)
    assert set(sides) == {1.0, -1.0}
    rng = random.Random(0)
    true = [source.draw(Window([1], [4]), rng) for _ in range(100)]
    assert 30 < sum(drawn.true for drawn in true) < 70
    assert all(matched(drawn)[4] == 1 for drawn in true if drawn.true)


def test_texts_without_a_common_word() -> None:
    names = ("a b", "c d", "e f")
    with pytest.raises(DataError, match="share no word"):
        PhraseSource(Catalogue(names, names, (), torch.zeros(3, 0, dtype=torch.bool)), TRAIN_TEMPLATES)


def test_the_text_of_the_items_before(told: Told) -> None:
    source = HistorySource(told)
    found = [source.draw(Window([5, 0, 2, 3], [0, 2, 3, 9]), random.Random(seed)) for seed in range(40)]
    texts = {drawn.position: drawn.text for drawn in found}
    assert texts == {
        0: "Blue tale 5",
        1: "Blue tale 5; Red tale 0 slow burn road trip",
        2: "Blue tale 5; Red tale 0 slow burn road trip; Red tale 2",
        3: "Red tale 0 slow burn road trip; Red tale 2; Blue tale 3",
    }
    assert all(drawn.match is None and not drawn.true for drawn in found)


def test_weights_are_shares(data: tuple[Catalogue, Split]) -> None:
    parts = [(EmptySource(["nothing"]), 1.0), (SaidSource(SAID, 40), 3.0)]
    found = draws(MixedSource(parts), 1000)
    assert sum(drawn.text == "nothing" for drawn in found) == pytest.approx(250, abs=50)
    options = GeneratorOptions(empty_share=0.5, random_share=0.2)
    made = request_source(None, data[0], options, {"stated": 1, "attributes": 1}, SAID)
    found = draws(made, 1000)
    said = sum(drawn.window is not None for drawn in found)
    silent = sum(isinstance(d.match, AttributeRequest) and not d.match.wanted + d.match.unwanted for d in found)
    assert said == pytest.approx(250, abs=50)
    assert silent == pytest.approx(500, abs=60)


def test_one_source_alone_draws_as_without_the_others(data: tuple[Catalogue, Split]) -> None:
    plain = AttributeSource(data[0], TRAIN_TEMPLATES)
    for given in ({"attributes": 3.0}, None):
        made = request_source(None, data[0], GeneratorOptions(), given)
        assert [d.text for d in draws(made)] == [d.text for d in draws(plain)]
        assert made.settings() == {}  # so that checkpoints of earlier versions are resumed
    assert request_source(None, data[0], GeneratorOptions(), None, SAID).settings()["requests"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": 1}, "found 'state', expected one of stated, attributes, catalogue, history"),
        ({"stated": 0}, "stated: found 0, expected a positive number"),
        ({"stated": True}, "expected a positive number"),
        ({3: 1}, "found 3, expected one of"),
        ({}, "expected a weight for each"),
    ],
)
def test_weights_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(given)


def test_weights_as_text() -> None:
    assert read_weights("stated=2, attributes") == {"stated": 2.0, "attributes": 1.0}
    for text, message in (("stated=many", "found 'many', expected a number"), ("state", "state"), ("", "found {}")):
        with pytest.raises(ConfigError, match=message):
            read_weights(text)


Batch = Callable[[dict[Any, float], bool], dict[str, Any]]


@pytest.fixture
def batch(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> Batch:
    def make(requests: dict[Any, float], few_items: bool = False) -> dict[str, Any]:
        windows = HistoryWindows(data[1].train, 8)
        options = GeneratorOptions(positions=8, empty_share=0.0)
        source = request_source(masks, data[0], options, requests, SAID)
        collator = RequestCollator(masks, data[0], options, 0, None, 5 if few_items else None, source)
        return collator([windows[index] for index in range(len(windows))])

    return make


@pytest.mark.parametrize("few_items", [False, True])
def test_batches_of_what_was_said(batch: Batch, masks: RequestMaskModel, few_items: bool) -> None:
    found = batch({SaidSource(SAID, 40): 1.0}, few_items)
    columns = found.get("items", torch.arange(40))
    for row, ids in enumerate(found["item_ids"].tolist()):
        history, text, item = SAID[0] if ids[0] == 5 else SAID[1]
        assert ids == [*(int(one) + 1 for one in history), *[0] * (8 - len(history))]
        assert torch.equal(found["vectors"][row], masks.encode([text])[0])
        assert int(found["known"][row].sum()) == len(history)
        fits = found["fits"][row].nonzero().flatten().tolist()
        assert found["positions"][row, fits].tolist() == [len(history) - 1]
        assert columns[found["targets"][row, fits]].tolist() == [item]
        assert columns[found["match"][row].nonzero().flatten()].tolist() == [item]
    assert "edits" not in found


def test_batches_without_a_smallest_edit(batch: Batch) -> None:
    found = batch({"history": 1.0, "attributes": 1.0})
    rows = ~found["edits"]
    assert 0 < int(rows.sum()) < len(rows)
    assert not found["match"][rows].any()
    assert found["fits"][rows].sum(1).tolist() == [1] * int(rows.sum())


def test_batches_of_phrases(batch: Batch, data: tuple[Catalogue, Split]) -> None:
    found = batch({"catalogue": 1.0})
    targets, match = found["targets"].clamp(min=0), found["match"]
    assert bool(found["fits"].any())
    assert bool((match.gather(1, targets)[found["fits"]] == 1).all())
