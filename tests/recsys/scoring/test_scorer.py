from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cramer_peft.errors import ConfigError, DataError
from cramer_peft.recsys import ListOptions, ListScorer
from cramer_peft.recsys.backbones import SASRec, save_backbone
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.request_encoders import request_encoder


def lists(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for user, item in zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True):
        found.setdefault(user, []).append(item)
    return found


def test_lists_are_those_of_recommend(bundle: Path, make_rows: Callable[..., pa.Table]) -> None:
    table, loaded = make_rows(50), RequestRecommender.load(bundle)
    scored = ListScorer(bundle, ListOptions(k=6, strength=4.0, batch_size=16))(table)
    assert scored.lists.schema.names == ["user", "rank", "item", "score", "heard"]
    assert len(scored.bad) == 0
    found = lists(scored.lists)
    assert list(found) == table["user"].to_pylist()
    scores = iter(scored.lists["score"].to_pylist())
    for row in table.to_pylist():
        history = [loaded.catalogue.index_of(item) for item in row["history"]]
        answer = loaded.recommend(history, row["request"], strength=4.0, k=6)
        assert found[row["user"]] == [loaded.catalogue.item_ids[item] for item in answer.items]
        assert [next(scores) for _ in answer.items] == pytest.approx(answer.scores, abs=1e-4)


def test_what_was_heard_is_a_text(sasrec: SASRec, catalogue: Catalogue, tmp_path: Path) -> None:
    save_backbone(sasrec, tmp_path, catalogue)
    encoder = request_encoder(None, catalogue, sasrec)
    RequestRecommender(mask_backbone(sasrec, catalogue, encoder=encoder), catalogue).save(tmp_path)
    requests = ["no horror", None, "hwzqx", " "]
    table = pa.table({"user": [1, 2, 3, 4], "history": [["i1"]] * 4, "request": requests})
    scored = ListScorer(tmp_path, ListOptions(k=2))(table)
    heard = dict(zip(scored.lists["user"].to_pylist(), scored.lists["heard"].to_pylist(), strict=True))
    assert heard[1] == "unwanted: horror"
    assert heard[2] is heard[4] is None
    assert heard[3] == "nothing understood (hwzqx): the list is the one without a request"


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (["gone"], "history[0]: no item of the catalogue has the id 'gone'"),
        (["gone", "lost"], "history[0]: no item of the catalogue has the id 'gone'"),
        (["i1", None], "history[1]: no item of the catalogue has the id None"),
        ([None], "history[0]: no item of the catalogue has the id None"),
        ([], "history: found no item"),
        (None, "history: found None, expected a list of item ids"),
        ([f"i{item}" for item in range(40)], "history: found every item that may be recommended"),
    ],
)
def test_a_bad_row_comes_back_with_its_reason(bundle: Path, history: Any, reason: str) -> None:
    table = pa.table({"user": ["a", "b", "c"], "history": [["i1"], history, ["i2"]], "request": ["x", "y", None]})
    scored = ListScorer(bundle)(table)
    assert set(lists(scored.lists)) == {"a", "c"}
    (bad,) = scored.bad.to_pylist()
    assert {name: bad[name] for name in table.schema.names} == table.to_pylist()[1]
    assert bad["reason"].startswith(reason)
    assert "docs/errors" not in bad["reason"]


def test_unknown_items_are_left_out_and_counted(bundle: Path) -> None:
    table = pa.table({"user": ["a", "b"], "history": [["i1", "i2"], ["i3"]], "request": ["more horror", None]})
    histories = [["gone", "i1", "lost", "i2"], ["i3", "gone"]]
    other = table.set_column(1, "history", [histories])
    scored = ListScorer(bundle)(other)
    assert scored.lists == ListScorer(bundle)(table).lists
    assert (len(scored.bad), scored.unknown) == (0, 3)
    refused = ListScorer(bundle, ListOptions(refuse_unknown=True))(other)
    assert refused.bad["reason"].to_pylist() == [
        "history[0]: no item of the catalogue has the id 'gone'.",
        "history[1]: no item of the catalogue has the id 'gone'.",
    ]
    assert (len(refused.lists), refused.unknown) == (0, 0)


def test_a_row_whose_scores_cannot_be_ranked_is_found(bundle: Path, make_rows: Callable[..., pa.Table]) -> None:
    scorer, table = ListScorer(bundle, ListOptions(batch_size=8)), make_rows(20)
    expected = lists(scorer(table).lists)

    def breaking(_: Any, inputs: tuple[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill((inputs[0] == 40).any(1, keepdim=True), torch.nan)

    with scorer._recommender.masks.model.register_forward_hook(breaking):
        scored = scorer(table)
    broken = [row["user"] for row in table.to_pylist() if "i39" in row["history"][-8:]]
    assert 0 < len(broken) < 20
    assert scored.bad["user"].to_pylist() == broken
    assert all("not finite" in reason for reason in scored.bad["reason"].to_pylist())
    assert lists(scored.lists) == {user: own for user, own in expected.items() if user not in broken}


def test_ids_may_be_numbers_and_columns_have_any_name(bundle: Path, edit_json: Callable[..., None]) -> None:
    edit_json(bundle / "catalogue.json", item_ids=[str(item) for item in range(40)])
    for path in bundle.rglob("catalogue_digest.json"):
        path.unlink()
    options = ListOptions(k=3, user="customer", history="bought", request=None)
    scored = ListScorer(bundle, options)(pa.table({"bought": [[3, 7], [39]], "customer": [10, 11], "more": ["x", "y"]}))
    assert scored.lists["user"].to_pylist() == [10] * 3 + [11] * 3
    assert scored.lists["heard"].null_count == 6


def test_candidates_and_exclude(bundle: Path) -> None:
    table = pa.table({"user": [1, 2], "history": [["i1"], ["i2", "i3"]]})
    options = ListOptions(request=None, candidates={"i2", "i3", "i4"}, exclude=["i4"])
    scored = ListScorer(bundle, options)(table)
    assert {user: sorted(own) for user, own in lists(scored.lists).items()} == {1: ["i2", "i3"]}
    assert scored.bad["user"].to_pylist() == [2]
    with pytest.raises(DataError, match=r"exclude\[0\]: no item of the catalogue has the id 'nothing'"):
        ListScorer(bundle, ListOptions(exclude=["nothing"]))
    with pytest.raises(DataError, match="candidates: found 'i1', expected a list"):
        ListScorer(bundle, ListOptions(candidates="i1"))


@pytest.mark.parametrize("changes", [{"k": 0}, {"k": 2.0}, {"batch_size": 0}, {"user": "history"}, {"request": "user"}])
def test_impossible_options(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ListOptions(**changes)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [1], "history": [["i1"]]}, "found the columns user, history, expected also request"),
        ({"user": [1], "history": ["i1 i2"], "request": ["x"]}, "column 'history': found string, expected a list"),
        ({"user": [1], "history": [["i1"]], "request": [5]}, "column 'request': found int64, expected texts"),
    ],
)
def test_columns_that_are_not_there_or_others(bundle: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ListScorer(bundle)(pa.table(columns))


def test_no_rows(bundle: Path, make_rows: Callable[..., pa.Table]) -> None:
    scored = ListScorer(bundle)(make_rows(3).slice(0, 0))
    assert len(scored.lists) == len(scored.bad) == 0
    assert scored.lists.schema.names == ["user", "rank", "item", "score", "heard"]
