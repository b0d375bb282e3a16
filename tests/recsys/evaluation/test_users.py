from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.users import EvaluationUsers, batched_scores, mask_scorer, score_histories

pytest.importorskip("accelerate")


def test_users_of_a_stage(catalogue: Catalogue, split: Split) -> None:
    for stage, targets, length in (("validation", split.validation_target, 2), ("test", split.test_target, 1)):
        users = EvaluationUsers.of(catalogue, split, stage, 4)  # type: ignore[arg-type]
        assert torch.equal(users.targets, targets)
        assert users.item_ids.shape == (30, 4)
        assert users.seen.sum(1).tolist() == [6 + user % 7 - length for user in range(30)]  # not cut at 4
        assert not users.seen.gather(1, targets[:, None]).any()
        assert torch.equal(users.seen_by(slice(7, 12)), users.seen[7:12])


def test_scores_are_those_of_one_batch(users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramer_peft.recsys.evaluation.users.BATCH", 7)
    seen: list[str | None] = []

    def scorer(item_ids: Tensor, texts: Sequence[str | None]) -> Tensor:
        assert len(item_ids) == len(texts) <= 7
        seen.extend(texts)
        return item_ids.float()

    for texts in ([f"text {index}" for index in range(30)], [None] * 30):
        seen.clear()
        assert torch.equal(batched_scores(scorer, users.item_ids, texts), users.item_ids.float())
        assert seen == texts


def test_score_histories_keeps_the_mode(
    sasrec: SASRec, users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramer_peft.recsys.evaluation.users.BATCH", 7)
    expected = sasrec(users.item_ids)
    for training in (False, True):
        sasrec.train(training)
        found = score_histories(sasrec, users.item_ids)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
        assert all(module.training == training for module in sasrec.modules())


def test_nan_is_refused_whatever_is_measured(users: EvaluationUsers) -> None:
    with pytest.raises(DataError, match="row 0 of the scores holds NaN"):
        batched_scores(lambda item_ids, _: item_ids / item_ids.new_zeros(()), users.item_ids, [None] * len(users))


def test_masks_of_an_overflowing_strength_are_not_ranked(users: EvaluationUsers, masks: RequestMaskModel) -> None:
    requests = ["more horror"] * len(users)
    assert mask_scorer(masks, 2.0)(users.item_ids, requests).isfinite().all()
    with pytest.raises(DataError, match=r"not finite.*Lower the strength"):
        mask_scorer(masks, 1e38)(users.item_ids, requests)
