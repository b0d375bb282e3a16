import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import SASRec, config_for, load_backbone
from cramer_peft.recsys.data.catalogue import Catalogue

LENGTH = 8
HASHING: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 32}}


@pytest.fixture
def model(make_sasrec: Callable[..., SASRec]) -> SASRec:
    """Untrained, but with biases and norms that are not at their trivial starts."""
    made = make_sasrec()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "token_type" not in name:
                parameter.mul_(5)
    return made


class RecBoleSASRec(nn.Module):
    """RecBole 1.2.1's SASRec as its model and layers modules describe it, written anew for comparison."""

    def __init__(self, num_items: int, length: int, hidden: int, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.item_embedding = nn.Embedding(num_items + 1, hidden, padding_idx=0)
        self.position_embedding = nn.Embedding(length, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "query": nn.Linear(hidden, hidden),
                    "key": nn.Linear(hidden, hidden),
                    "value": nn.Linear(hidden, hidden),
                    "dense": nn.Linear(hidden, hidden),
                    "attention_norm": nn.LayerNorm(hidden, eps=1e-12),
                    "up": nn.Linear(hidden, 4 * hidden),
                    "down": nn.Linear(4 * hidden, hidden),
                    "norm": nn.LayerNorm(hidden, eps=1e-12),
                }
            )
            for _ in range(layers)
        )

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        positions = torch.arange(items.shape[1])
        x = self.norm(self.item_embedding(items) + self.position_embedding(positions))
        allowed = (items > 0)[:, None, None] & torch.ones(items.shape[1], items.shape[1]).tril().bool()
        bias = torch.where(allowed, 0.0, -10000.0)
        for layer in self.layers:
            x = self.block(layer, x, bias)
        state = x[torch.arange(len(items)), lengths - 1]
        return state @ self.item_embedding.weight[1:].T

    def block(self, layer: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
        def heads(name: str) -> Tensor:
            return layer[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        scores = heads("query") @ heads("key").transpose(2, 3) / math.sqrt(x.shape[-1] // self.heads)
        context = ((scores + bias).softmax(-1) @ heads("value")).transpose(1, 2).flatten(2)
        x = layer["attention_norm"](layer["dense"](context) + x)
        h = layer["up"](x)
        gelu = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        return layer["norm"](layer["down"](gelu) + x)

    def copy_from(self, model: SASRec) -> None:
        bert = model.bert
        pairs = [
            (self.item_embedding, bert.embeddings.word_embeddings),
            (self.position_embedding, bert.embeddings.position_embeddings),
            (self.norm, bert.embeddings.LayerNorm),
        ]
        for own, its in zip(self.layers, bert.encoder.layer, strict=True):
            attention = its.attention
            pairs += [(own[name], getattr(attention.self, name)) for name in ("query", "key", "value")]
            pairs += [(own["dense"], attention.output.dense), (own["attention_norm"], attention.output.LayerNorm)]
            pairs += [(own["up"], its.intermediate.dense), (own["down"], its.output.dense)]
            pairs += [(own["norm"], its.output.LayerNorm)]
        for own, its in pairs:
            own.load_state_dict(its.state_dict())


@torch.no_grad()
def test_it_is_recboles_sasrec(model: SASRec, item_ids: Tensor) -> None:
    other = RecBoleSASRec(40, LENGTH, 16).eval()
    other.copy_from(model)
    counted = sum(p.numel() for p in other.parameters())
    assert sum(p.numel() for p in model.parameters()) == counted  # nothing is left out, nothing added
    expected = other(item_ids, (item_ids > 0).sum(1))
    found = model(item_ids)
    assert found.shape == (3, 40)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    in_double = model.double()(item_ids) - other.double()(item_ids, (item_ids > 0).sum(1))
    assert in_double.abs().max() < 1e-9


def test_the_shape_is_recboles_by_default() -> None:
    config = SASRec.configure(7)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 2)
    assert (config.hidden_size, config.intermediate_size, config.hidden_act) == (64, 256, "gelu")
    model = SASRec(config)
    assert model.num_items == 7
    assert model.max_length == config.max_position_embeddings


@torch.no_grad()
def test_causal(model: SASRec, item_ids: Tensor) -> None:
    positions = torch.arange(LENGTH).expand(3, -1)
    before = model(item_ids, positions=positions)
    for changed in range(1, LENGTH):
        other = item_ids.clone()
        other[:, changed] = other[:, changed] % 40 + 1
        after = model(other, positions=positions)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-6, rtol=0)
        assert not torch.allclose(after[:, changed], before[:, changed])


@torch.no_grad()
def test_padding_never_matters(model: SASRec, item_ids: Tensor) -> None:
    together = model(item_ids)
    for row, length in enumerate([8, 3, 1]):
        alone = model(item_ids[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_score_prefixes(model: SASRec, item_ids: Tensor) -> None:
    positions = torch.tensor([[0, 7, 3], [2, 0, 1], [0, 0, 0]])
    found = model(item_ids, positions=positions)
    assert found.shape == (3, 3, 40)
    for row in range(3):
        for column, position in enumerate(positions[row].tolist()):
            prefix = model(item_ids[row : row + 1, : position + 1])
            torch.testing.assert_close(found[row, column], prefix[0], atol=1e-5, rtol=0)


def test_loss_is_cross_entropy_at_known_positions(model: SASRec, item_ids: Tensor) -> None:
    labels = torch.where(item_ids > 0, torch.randint(0, 40, (3, LENGTH)), -100)
    labels[0, 2] = -100
    output = model(item_ids, labels=labels)
    scores = model(item_ids, positions=torch.arange(LENGTH).expand(3, -1))
    losses = [
        -functional.log_softmax(scores[row, place], -1)[label]
        for row in range(3)
        for place, label in enumerate(labels[row].tolist())
        if label != -100
    ]
    assert len(losses) == 11
    torch.testing.assert_close(output["loss"], torch.stack(losses).mean())


def test_empty_history(model: SASRec, item_ids: Tensor) -> None:
    item_ids[1] = 0
    with pytest.raises(DataError, match="row 1 is an empty history"):
        model(item_ids)


@torch.no_grad()
def test_round_trip(model: SASRec, item_ids: Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = SASRec.from_pretrained(tmp_path).eval()
    assert torch.equal(again(item_ids), model(item_ids))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert (again.num_items, again.max_length) == (40, LENGTH)


# --- the scoring layer


def test_the_head_is_the_item_embeddings(model: SASRec, item_ids: Tensor) -> None:
    table = model.bert.embeddings.word_embeddings
    assert model.head.weight is table.weight
    assert model.get_output_embeddings() is model.head
    hidden = model.bert(item_ids).last_hidden_state
    last = hidden[torch.arange(3), (item_ids > 0).sum(1) - 1]
    torch.testing.assert_close(model(item_ids), last @ table.weight[1:].T)


def test_the_head_is_saved_once_and_tied_again(model: SASRec, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert "head.weight" not in stored.keys()  # noqa: SIM118  (as in files from before there was a head)
        assert "bert.embeddings.word_embeddings.weight" in stored.keys()  # noqa: SIM118
    again, report = SASRec.from_pretrained(tmp_path, output_loading_info=True)
    assert again.head.weight is again.bert.embeddings.word_embeddings.weight
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    catalogue = Catalogue(
        tuple(map(str, range(40))), tuple(map(str, range(40))), ("x",), torch.ones(40, 1, dtype=torch.bool)
    )
    loaded = load_backbone(tmp_path, catalogue)
    assert loaded.head.weight is loaded.bert.embeddings.word_embeddings.weight


@torch.no_grad()
def test_masks_of_the_head_do_not_touch_the_embeddings(model: SASRec, item_ids: Tensor, gate: str) -> None:
    model.requires_grad_(False)
    frozen, keys = model(item_ids), list(model.state_dict())
    table = model.bert.embeddings.word_embeddings
    before, inputs = table.weight.clone(), table(item_ids)
    masks = inject_request_masks(
        model, RequestMaskConfig(target_modules=["head"], gate=gate, init_weights=False, **HASHING)
    )
    seen: list[Tensor] = []
    hook = table.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    found = masks(item_ids, request=["more horror", None, "no comedy"])
    hook.remove()
    assert torch.equal(seen[0], inputs)
    assert torch.equal(found[1], frozen[1])
    assert not torch.allclose(found[[0, 2]], frozen[[0, 2]])
    assert torch.equal(masks(item_ids, request=None), frozen)
    masks.unload()
    assert torch.equal(model(item_ids), frozen)
    assert torch.equal(table.weight, before)
    assert model.head.weight is table.weight
    assert list(model.state_dict()) == keys


def test_the_scores_are_masked_or_for_topk_what_is_inside(make_sasrec: Callable[..., SASRec]) -> None:
    for gate in ("signed", "scale", "low_rank"):
        found = config_for(make_sasrec(), RequestMaskConfig(gate=gate, **HASHING))
        assert (found.target_outputs, found.row_features) == ({"": {"in_place": True, "candidates": "items"}}, [""])
        masks = inject_request_masks(make_sasrec(), found)
        assert list(masks.generator.specs) == [":forward"]
    model = make_sasrec()
    masks = inject_request_masks(model, config_for(model, RequestMaskConfig.paper(**HASHING)))
    assert len(masks.generator.specs) == 6  # two blocks with three layers each
    own = config_for(make_sasrec(), RequestMaskConfig(target_modules=["head"], **HASHING))
    assert own.target_modules in (["head"], {"head"})  # what is asked for by name stays
    assert own.target_outputs is None
