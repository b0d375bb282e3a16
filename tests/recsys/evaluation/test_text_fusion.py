from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from cramer_peft import RequestMaskModel
from cramer_peft.encoders import HashingEncoder
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.evaluation import text_fusion as module
from cramer_peft.recsys.evaluation.metrics import ndcg, target_ranks
from cramer_peft.recsys.evaluation.text_fusion import TextFusion
from cramer_peft.recsys.evaluation.tracks import Track
from cramer_peft.recsys.evaluation.users import EvaluationUsers


class OneHot:
    """Encodes a text as the attribute words in it, so that similarity is meaning."""

    words = ("action", "classic", "comedy", "drama", "horror")

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(word in text.lower()) for word in self.words] + [0.1] for text in texts])


def test_scores_are_the_models_plus_weighted_similarity(catalogue: Catalogue, sasrec: SASRec) -> None:
    encoder = HashingEncoder(16)
    item_ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    requests = ["more horror", None, "something funny"]
    with torch.no_grad():
        frozen = sasrec(item_ids)
        scores = TextFusion(sasrec, encoder, catalogue, weight=3.0)(item_ids, requests)
    assert torch.equal(scores[1], frozen[1])
    for row in (0, 2):
        for item in (0, 7, 39):
            text = " ".join([catalogue.titles[item], *(name.lower() for name in catalogue.attribute_names(item))])
            request, words = encoder.encode([str(requests[row]), text])
            expected = frozen[row, item] + 3.0 * cosine_similarity(request, words, dim=0)
            torch.testing.assert_close(scores[row, item], expected, atol=1e-5, rtol=0)


@pytest.fixture
def next_item_ndcg(
    users: EvaluationUsers, tracks: dict[str, Track], score_users: Callable[..., Tensor]
) -> Callable[[TextFusion], float]:
    """NDCG@10 of the next item under truthful requests, all users at once."""

    def quality(scorer: TextFusion) -> float:
        scores = score_users(scorer, tracks["truthful"].requests).masked_fill(users.seen, -torch.inf)
        return float(ndcg(target_ranks(scores, users.targets)).mean())

    return quality


@torch.no_grad()
def test_nothing_asked_is_the_model_exactly(catalogue: Catalogue, masks: RequestMaskModel, sasrec: SASRec) -> None:
    item_ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    frozen = masks(item_ids, request=None)
    fusion = TextFusion(masks, HashingEncoder(16), catalogue)
    for requests in ([None] * 3, ["", " ", None], ["\n", None, "\t"]):
        assert torch.equal(fusion(item_ids, requests), frozen)
    mixed = fusion(item_ids, ["  ", "horror", None])
    assert torch.equal(mixed[[0, 2]], frozen[[0, 2]])
    assert not torch.equal(mixed[1], frozen[1])


def test_similarity_finds_what_is_asked(
    users: EvaluationUsers,
    tracks: dict[str, Track],
    sasrec: SASRec,
    score_users: Callable[..., Tensor],
    next_item_ndcg: Callable[[TextFusion], float],
) -> None:
    fusion = TextFusion(sasrec, OneHot(), users.catalogue, weight=0.0)
    plain = next_item_ndcg(fusion)
    wanted = tracks["for"].requests
    top = score_users(TextFusion(sasrec, OneHot(), users.catalogue, weight=1e3), wanted).argmax(1)
    for user, request in enumerate(wanted):
        assert request.wanted[0] in users.catalogue.attribute_names(int(top[user]))
    fusion.tune(users, [request.text for request in tracks["truthful"].requests])
    assert next_item_ndcg(fusion) > plain


def test_tuning_picks_the_best_weight(
    users: EvaluationUsers,
    tracks: dict[str, Track],
    sasrec: SASRec,
    next_item_ndcg: Callable[[TextFusion], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = (0.5, 8.0, 50.0)
    monkeypatch.setattr(module, "WEIGHTS", weights)
    fusion = TextFusion(sasrec, OneHot(), users.catalogue)
    qualities = {}
    for weight in weights:
        fusion.weight = weight
        qualities[weight] = next_item_ndcg(fusion)
    assert len(set(qualities.values())) > 1
    fusion.tune(users, [request.text for request in tracks["truthful"].requests])
    assert qualities[fusion.weight] == max(qualities.values())


def test_tuning_does_not_depend_on_its_batches(
    users: EvaluationUsers, tracks: dict[str, Track], sasrec: SASRec, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for batch, cells in ((7, 2**25), (256, 2**25), (256, 4 * len(users.catalogue))):
        monkeypatch.setattr(module, "BATCH", batch)
        monkeypatch.setattr("cramer_peft.recsys.evaluation.batches.CELLS", cells)
        fusion = TextFusion(sasrec, OneHot(), users.catalogue)
        fusion.tune(users, [request.text for request in tracks["truthful"].requests])
        found.add(fusion.weight)
    assert len(found) == 1


def test_tuning_counts_the_users_who_ask(users: EvaluationUsers, tracks: dict[str, Track], sasrec: SASRec) -> None:
    texts = [request.text for request in tracks["truthful"].requests]
    fusion = TextFusion(sasrec, OneHot(), users.catalogue)
    fusion.tune(users, [None] * len(users), (0.0, 5.0))
    assert fusion.weight == 0
    fusion.tune(users, [texts[0], *[None] * (len(users) - 1)], (0.0, 1e3))
    few = EvaluationUsers(users.catalogue, users.histories[:1], users.targets[:1], users.max_length)
    alone = TextFusion(sasrec, OneHot(), users.catalogue)
    alone.tune(few, texts[:1], (0.0, 1e3))
    assert fusion.weight == alone.weight
