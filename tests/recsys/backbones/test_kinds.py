import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import ConfigError, DataError, MissingExtraError
from cramer_peft.recsys.backbones import (
    BACKBONES,
    Backbone,
    BERT4Rec,
    GRU4Rec,
    SASRec,
    config_for,
    make_backbone,
    save_backbone,
)
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.training.backbone_training import (
    backbone_options,
)

POSITIONS = torch.tensor([[0, 7, 3], [2, 0, 1], [0, 0, 0]])
REQUESTS = ["more horror", "no comedy", None]
SIGNED: dict[str, Any] = {"gate": "signed", "rank": None}


@pytest.fixture(params=sorted(BACKBONES))
def model(request: pytest.FixtureRequest, make_untrained: Callable[[str], Any]) -> Any:
    return make_untrained(request.param)


@pytest.fixture
def config(hashing: Callable[..., RequestMaskConfig]) -> RequestMaskConfig:
    return hashing(init_weights=False)


def test_the_interface(model: Any, item_ids: Tensor) -> None:
    assert isinstance(model, Backbone)
    assert BACKBONES[model.name] is type(model)
    assert (model.num_items, model.max_length, model.device.type) == (40, 8, "cpu")
    scores = model(item_ids)
    assert scores.shape == (3, 40)
    assert scores.std() > 0.01


def test_rows_do_not_depend_on_their_neighbours(model: Any, item_ids: Tensor) -> None:
    together = model(item_ids)
    for row, length in enumerate([8, 3, 1]):
        torch.testing.assert_close(model(item_ids[row : row + 1, :length])[0], together[row], atol=2e-5, rtol=0)
        assert torch.equal(model(item_ids.flip(0)).flip(0)[row], together[row])


def test_positions_score_what_comes_after_truncated_histories(model: Any, item_ids: Tensor) -> None:
    found = model(item_ids, positions=POSITIONS)
    assert found.shape == (3, 3, 40)
    for row in range(3):
        for column, position in enumerate(POSITIONS[row].tolist()):
            alone = model(item_ids[row : row + 1, : position + 1])[0]
            torch.testing.assert_close(found[row, column], alone, atol=2e-5, rtol=0)


def test_positions_under_requests(
    model: Any, item_ids: Tensor, catalogue: Catalogue, config: RequestMaskConfig
) -> None:
    masks = mask_backbone(model, catalogue, config)
    with torch.no_grad():
        frozen = masks(item_ids, positions=POSITIONS, request=None)
        found = masks(item_ids, positions=POSITIONS, request=REQUESTS)
        for row in range(3):
            for column, position in enumerate(POSITIONS[row].tolist()):
                alone = masks(item_ids[row : row + 1, : position + 1], request=[REQUESTS[row]])[0]
                torch.testing.assert_close(found[row, column], alone, atol=2e-5, rtol=0)
    assert (found - frozen)[:2].abs().amax((1, 2)).min() > 1e-3
    assert torch.equal(found[2], frozen[2])


def test_unloading_gives_back_the_very_scores(
    model: Any, item_ids: Tensor, catalogue: Catalogue, config: RequestMaskConfig
) -> None:
    before, keys = model(item_ids), list(model.state_dict())
    masks = mask_backbone(model, catalogue, config)
    with torch.no_grad():
        assert torch.equal(masks(item_ids, request=None), before)
        assert not torch.equal(masks(item_ids, request="more horror"), before)
    masks.unload()
    assert torch.equal(model(item_ids), before)
    assert list(model.state_dict()) == keys


def test_the_loss_reaches_every_weight(model: Any, item_ids: Tensor) -> None:
    labels = torch.where(item_ids > 0, item_ids.roll(-1, 1).clamp(min=1) - 1, -100)
    model.requires_grad_(True).train()
    torch.manual_seed(0)
    loss = model(item_ids, labels=labels)["loss"]
    assert 0 < loss.item() < 60
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert "token_type" in name, name


def test_an_empty_history(model: Any, item_ids: Tensor) -> None:
    item_ids[1] = 0
    with pytest.raises(DataError, match="row 1 is an empty history"):
        model(item_ids)


def test_a_bundle_round_trip(model: Any, catalogue: Catalogue, config: RequestMaskConfig, tmp_path: Path) -> None:
    save_backbone(model, tmp_path)
    assert json.loads((tmp_path / "backbone" / "config.json").read_text())["architectures"] == [type(model).__name__]
    masks = mask_backbone(model, catalogue, config)
    RequestRecommender(masks, catalogue).save(tmp_path)
    before = RequestRecommender(masks, catalogue).recommend([3, 7, 11], "more horror", strength=4.0)
    loaded = RequestRecommender.load(tmp_path)
    assert type(loaded.masks.model) is type(model)
    assert loaded.recommend([3, 7, 11], "more horror", strength=4.0) == before
    assert not loaded.masks.model.training
    inputs = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(loaded.masks(inputs, request=None), masks(inputs, request=None))


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"found 'bert4rek', expected one of .* Did you mean 'bert4rec'"):
        make_backbone("bert4rek", 3)
    assert backbone_options("bert4rec").epochs > backbone_options("gru4rec").epochs


def test_replay_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "replay.nn.sequential", None)
    with pytest.raises(MissingExtraError, match=r"cramer-peft\[replay\]"):
        make_backbone("replay-sasrec", 3)


def test_bert4rec_sees_both_sides_and_hides_the_last(make_untrained: Callable[[str], Any]) -> None:
    model, sequence = make_untrained("bert4rec"), torch.tensor([[5, 6, 7, 8]])
    labels = sequence.roll(-1) - 1
    labels[0, -1] = 8
    expected = -model(sequence).log_softmax(-1)[0, 8]
    torch.testing.assert_close(model(sequence, labels=labels)["loss"], expected)
    model.train()
    torch.manual_seed(0)
    losses = {round(float(model(sequence, labels=labels)["loss"]), 4) for _ in range(10)}
    assert len(losses) > 2  # what is hidden differs


def test_the_head_of_bert4rec_is_tied(make_untrained: Callable[[str], Any]) -> None:
    model = make_untrained("bert4rec")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.mask_token == 41


def test_bert4rec_refuses_a_causal_configuration() -> None:
    with pytest.raises(DataError, match="both directions"):
        BERT4Rec(SASRec.configure(5))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_scores_are_masked_by_default(name: str) -> None:
    candidates = {"candidates": "items"} if name in ("sasrec", "gru4rec") else {}
    for gate in ("signed", "scale", "low_rank"):
        found = config_for(BACKBONES[name], RequestMaskConfig(gate=gate, encoder="hashing"))
        assert (found.target_outputs, found.row_features) == ({"": {"in_place": True, **candidates}}, [""])
        assert (found.target_modules, found.batch_folding) == (None, None)
    assert config_for(BACKBONES[name]) == config_for(BACKBONES[name], RequestMaskConfig())


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_topk_masks_what_is_inside_as_in_the_paper(name: str) -> None:
    kind = BACKBONES[name]
    found = config_for(kind, RequestMaskConfig.paper(encoder="hashing"))
    assert (found.target_outputs, found.row_features) == (None, None)
    assert (found.target_modules, found.module_parts) == (kind.default_targets, kind.default_parts)
    assert found.batch_folding == ("rows_first" if kind.expands_positions else None)


def test_a_backbone_and_its_class_have_one_configuration(model: Any) -> None:
    for config in (RequestMaskConfig(), RequestMaskConfig.paper()):
        assert config_for(model, config) == config_for(type(model), config)


def test_what_a_configuration_names_stays(
    make_untrained: Callable[[str], Any], hashing: Callable[..., RequestMaskConfig]
) -> None:
    bert4rec = make_untrained("bert4rec")
    for kept in (
        {"target_modules": ["dense"], "batch_folding": "rows_last"},
        {"target_outputs": {"bert": {"field": "last_hidden_state", "features": 16}}},
        {"row_features": ["cls.predictions.decoder"], "batch_folding": "rows_first"},
    ):
        given = hashing(**SIGNED, **kept)
        assert config_for(bert4rec, given) == given
    folded = config_for(bert4rec, hashing(**SIGNED, target_modules=["dense"]))
    assert folded.batch_folding == "rows_first"  # positions are rows inside of it
    assert config_for(torch.nn.Linear(2, 2), hashing(**SIGNED)) == hashing(**SIGNED)


def test_the_scoring_layer_of_gru4rec_is_its_items(
    make_untrained: Callable[[str], Any], hashing: Callable[..., RequestMaskConfig], tmp_path: Path
) -> None:
    model = make_untrained("gru4rec")
    model.save_pretrained(tmp_path)
    assert "head.weight" not in model.state_dict()
    loaded = GRU4Rec.from_pretrained(tmp_path)
    other = make_backbone("gru4rec", 40, max_length=8, hidden_size=16)
    other.load_state_dict(model.state_dict())
    for one in (model, loaded, other, copy.deepcopy(model)):
        assert one.head.weight is one.items.weight
        assert torch.equal(one.items.weight, model.items.weight)
    before = model(torch.tensor([[1, 2, 3]]))
    masks = inject_request_masks(model, hashing(target_modules=["head"], init_weights=False))
    with torch.no_grad():
        assert torch.equal(masks(torch.tensor([[1, 2, 3]]), request=None), before)
        assert not torch.equal(masks(torch.tensor([[1, 2, 3]]), request="more horror"), before)
