from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from benchmark.real_language.matching import MatchedRequests, MatchReport
from benchmark.real_language.measure_dialogues import (
    FUSION_WEIGHTS,
    WORDINGS,
    choose_candidate,
    dialogue_interval,
    evaluate_redial,
    last_sentence,
    measure_redial,
    redial_methods,
    redial_ranks,
    shuffled_requests,
    without_placeholders,
)
from benchmark.real_language.parts import RedialParts, split_dialogues
from torch import Tensor

from cramer_peft import RequestMaskModel, WordLlamaEncoder, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec, config_for
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation.text_fusion import TextFusion
from cramer_peft.recsys.evaluation.users import mask_scorer
from cramer_peft.recsys.requests.request_encoders import request_encoder

ITEMS, LENGTH = 40, 8


def make_matched(dialogues: int = 20) -> MatchedRequests:
    """Two rows a dialogue; the request names the target's number, which Reader below can read."""
    histories, requests, targets, names = [], [], [], []
    for number in range(dialogues):
        for row in range(2):
            target = (7 * number + row) % ITEMS
            histories.append(torch.tensor([] if number == 3 else [(target + 1) % ITEMS, (target + 2) % ITEMS]).long())
            requests.append(f"I liked [movie] a lot. Give me {target} please now")
            targets.append(target)
            names.append(f"d{number}")
    report = MatchReport(len(targets), 0, 0, 0, 0, len(targets), 0, 0, 0)
    return MatchedRequests(tuple(histories), tuple(requests), torch.tensor(targets), tuple(names), report)


class Reader:
    """Scores by the number that stands in the request; the same for all items without one."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        scores = torch.zeros(len(item_ids), ITEMS)
        for row, text in enumerate(requests):
            for word in (text or "").split():
                if word.isdigit():
                    scores[row, int(word)] += self.weight
        return scores


@pytest.fixture
def parts() -> RedialParts:
    return split_dialogues(make_matched(), ITEMS, LENGTH, seed=1)


def test_no_dialogue_is_in_both_parts_and_empty_histories_are_counted(parts: RedialParts) -> None:
    first, second = set(parts.validation.dialogues), set(parts.test.dialogues)
    assert not first & second
    assert len(first | second) == 19
    assert parts.without_history == 2
    assert len(parts.validation) + len(parts.test) == 38
    again = split_dialogues(make_matched(), ITEMS, LENGTH, seed=1)
    assert again.test.dialogues == parts.test.dialogues
    assert torch.equal(again.test.targets, parts.test.targets)
    assert bool((parts.test.item_ids > 0).any(1).all())


def test_rows_that_matching_left_out_are_counted_too() -> None:
    matched = make_matched(3)
    report = MatchReport(6, 0, 0, 0, 5, 6, 0, 0, 0)
    counted = MatchedRequests(matched.histories, matched.requests, matched.targets, matched.dialogues, report)
    assert split_dialogues(counted, ITEMS, LENGTH).without_history == 5


def test_one_dialogue_can_not_be_split() -> None:
    with pytest.raises(DataError, match="expected two or more to split"):
        split_dialogues(make_matched(1), ITEMS, LENGTH)


GREETED = "Hi! I like [movie] . Something scary like that please"


@pytest.mark.parametrize(
    ("text", "plain", "last"),
    [
        (GREETED, "Hi! I like . Something scary like that please", "Something scary like that please"),
        ("like [movie] ok", "like ok", "like ok"),
        ("I want a good comedy. Yes. Thanks!", "I want a good comedy. Yes. Thanks!", "I want a good comedy."),
        (" [movie] ", "", ""),
    ],
)
def test_wordings(text: str, plain: str, last: str) -> None:
    assert without_placeholders(text) == plain
    assert last_sentence(text) == last


def test_ranks_leave_out_the_history(parts: RedialParts) -> None:
    ranks = redial_ranks(Reader(), parts.test, parts.test.requests)
    assert ranks.tolist() == [1.0] * len(parts.test)
    # all equal: the middle of the 38 items that are not in the history
    assert redial_ranks(Reader(), parts.test).tolist() == [19.5] * len(parts.test)
    with pytest.raises(DataError, match="found 1, expected one for each"):
        redial_ranks(Reader(), parts.test, ["one"])


def test_shuffled_requests_come_from_another_dialogue(parts: RedialParts) -> None:
    own = dict(zip(parts.test.requests, parts.test.dialogues, strict=True))
    swapped = shuffled_requests(parts.test, seed=0)
    assert all(own[text] != dialogue for text, dialogue in zip(swapped, parts.test.dialogues, strict=True))
    assert swapped == shuffled_requests(parts.test, seed=0)
    assert swapped != shuffled_requests(parts.test, seed=1)


def test_rows_of_one_dialogue_are_drawn_together() -> None:
    values = torch.arange(40).div(8, rounding_mode="floor").float()  # equal within blocks of eight
    together = dialogue_interval(values, [f"d{row // 8}" for row in range(40)])
    apart = dialogue_interval(values, [f"d{row}" for row in range(40)])
    assert together.estimate == pytest.approx(2) == apart.estimate
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_the_mean_is_that_over_rows_where_dialogues_differ_in_length() -> None:
    found = dialogue_interval(torch.tensor([1.0, 0.0, 0.0, 0.0]), ["a", "b", "b", "b"])
    assert found.estimate == pytest.approx(0.25)
    with pytest.raises(DataError, match=r"expected \(1,\)"):
        dialogue_interval(torch.zeros(2), ["a"])


def test_the_best_candidate_and_wording_are_chosen(parts: RedialParts) -> None:
    choice = choose_candidate({"wrong": Reader(-1.0), "right": Reader()}, parts.validation)
    assert (choice.candidate, choice.wording, choice.ndcg) == ("right", "whole text", 1.0)
    assert len(choice.table) == 2 * len(WORDINGS)
    with pytest.raises(DataError, match="found none"):
        choose_candidate({}, parts.validation)


def test_what_the_request_is_worth(parts: RedialParts) -> None:
    methods = {"reads": {"on": Reader(), "off": Reader(0.0)}, "deaf": {"off": Reader(0.0)}}
    found = measure_redial(methods, Reader(0.0), parts, test=True)
    assert (found["part"], found["without_history"], found["rows"]) == ("test", 2, len(parts.test))
    assert found["chosen"]["reads"]["candidate"] == "on"
    assert found["methods"]["reads"]["ndcg"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["methods"]["no request"]["hr"]["value"] == 0
    differences = found["differences"]
    assert differences["reads - no request"]["ndcg"]["low"] > 0
    assert differences["reads - reads, shuffled requests"]["mrr"]["low"] > 0
    assert differences["reads - deaf"]["hr"]["value"] == 1
    assert differences["deaf - no request"]["ndcg"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    json.dumps(found)


def test_choices_never_see_the_test(parts: RedialParts) -> None:
    seen: list[tuple[str | None, ...]] = []

    def spy(item_ids: Tensor, requests: Sequence[str | None]) -> Tensor:
        seen.append(tuple(requests))
        return Reader()(item_ids, requests)

    measure_redial({"spy": {"one": spy}}, Reader(), parts)
    tested = set(parts.test.requests) - set(parts.validation.requests)
    assert not tested & {text for texts in seen for text in texts}


def test_unknown_wordings_are_refused(parts: RedialParts) -> None:
    with pytest.raises(DataError, match="unknown wordings"):
        evaluate_redial({"ours": (Reader(), "backwards")}, Reader(), parts.test)
    with pytest.raises(DataError, match="no method called 'no request'"):
        evaluate_redial({"no request": (Reader(), "whole text")}, Reader(), parts.test)


def test_masks_at_strength_nought_are_the_frozen_model(masks: RequestMaskModel, parts: RedialParts) -> None:
    frozen = redial_ranks(mask_scorer(masks), parts.test)
    assert torch.equal(redial_ranks(mask_scorer(masks, 0.0), parts.test, parts.test.requests), frozen)
    assert not torch.equal(redial_ranks(mask_scorer(masks, 1.0), parts.test, parts.test.requests), frozen)


def test_masks_and_fusion_bring_their_candidates(
    masks: RequestMaskModel, catalogue: Catalogue, parts: RedialParts
) -> None:
    methods = redial_methods(masks, catalogue)
    assert list(methods) == ["ours", "text fusion"]
    texts = list(parts.test.requests)
    for candidates in methods.values():
        first, *_, last = candidates.values()
        assert not torch.equal(redial_ranks(first, parts.test, texts), redial_ranks(last, parts.test, texts))
        assert torch.equal(redial_ranks(first, parts.test), redial_ranks(last, parts.test))


def test_fusion_reads_texts_where_the_masks_read_requests_only(
    sasrec: SASRec, catalogue: Catalogue, parts: RedialParts
) -> None:
    pytest.importorskip("wordllama")
    masks = inject_request_masks(sasrec, config_for(sasrec), encoder=request_encoder(None, catalogue, sasrec))
    (fusion, *_) = redial_methods(masks, catalogue)["text fusion"].values()
    expected = TextFusion(masks, WordLlamaEncoder(), catalogue, FUSION_WEIGHTS[0])
    items, texts = parts.test.item_ids[:2], ["a comedy", None]
    assert torch.equal(fusion(items, texts), expected(items, texts))
