"""A generator that is trained on a sample of the items."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError
from cramer_peft.masks import KEY_WIDTH
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.backbones.sampling import with_negatives
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.generator_training import (
    GeneratorTrainer,
    generator_arguments,
    generator_negatives,
    train_generator,
)
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator
from cramer_peft.training import minimal_edit_loss

pytest.importorskip("accelerate")
OPTIONS = GeneratorOptions(steps=3, batch_size=8, positions=4, next_item_weight=0.5)
INSIDE = {"sasrec": ["intermediate.dense", "output.dense"], "gru4rec": ["gru", "dense"], "bert4rec": ["output.dense"]}


def described(name: str, catalogue: Catalogue) -> RequestMaskModel:
    """Random masks of the default kind, on the scores."""
    torch.manual_seed(0)
    backbone = make_backbone(name, len(catalogue), max_length=8, hidden_size=16).eval().requires_grad_(False)
    return mask_backbone(
        backbone, catalogue, RequestMaskConfig(init_weights=False), request_encoder(None, catalogue, backbone)
    )


def masked(name: str, items: int, **options: Any) -> RequestMaskModel:
    """Random masks, the scoring layer left out."""
    torch.manual_seed(0)
    backbone = make_backbone(name, items, max_length=8, hidden_size=16).eval().requires_grad_(False)
    given = {"target_modules": INSIDE[name], "encoder": "hashing", "encoder_options": {"dim": 16}, **options}
    return inject_request_masks(backbone, RequestMaskConfig(init_weights=False, **given))


def test_the_losses_go_to_those_over_all_items() -> None:
    generator = torch.Generator().manual_seed(0)
    frozen, noise = (torch.randn(1, 400, generator=generator) for _ in range(2))
    scores, match = frozen + 0.3 * noise, (torch.rand(1, 400, generator=generator) < 0.2).float()
    target = torch.tensor([5])

    def losses(items: Tensor, added: Tensor) -> Tensor:
        near, was = scores[:, items] + added, frozen[:, items] + added
        column = (items == target).nonzero()[0]
        edit = minimal_edit_loss(near, was, match[:, items], 2.0)
        return torch.stack([functional.cross_entropy(near, column), edit])

    whole = losses(torch.arange(400), torch.zeros(400))
    errors = []
    for negatives in (20, 200, 399):
        found = [losses(*with_negatives(target, 400, negatives, random.Random(seed))) for seed in range(200)]
        errors.append((torch.stack(found) - whole).abs().mean(0))
    assert bool((errors[0] > 2 * errors[1]).all())
    assert bool((errors[1] > errors[2]).all())
    assert bool((errors[2] < 1e-5).all())


def rows_of(split: Split) -> list[dict[str, Tensor]]:
    windows = HistoryWindows(split.train, 8)
    return [windows[index] for index in range(len(windows))]


def test_a_sampled_batch_is_the_whole_one_looked_at_in_part(data: tuple[Catalogue, Split]) -> None:
    masks, rows = masked("sasrec", 40), rows_of(data[1])
    whole = RequestCollator(masks, data[0], OPTIONS, 1)(rows)
    found = RequestCollator(masks, data[0], OPTIONS, 1, negatives=6)(rows)
    items, known = found["items"], found["known"]
    assert set(found) == {*whole, "items", "added"}
    for name in ("item_ids", "vectors", "positions", "known", "fits"):
        assert torch.equal(found[name], whole[name])
    assert torch.equal(items[found["targets"][known]], whole["targets"][known])
    assert bool((found["targets"][~known] == -100).all())
    assert torch.equal(found["match"], whole["match"][:, items])
    assert len(items) == len(whole["targets"][known].unique()) + 6 or len(items) == 40


def test_concepts_are_matched_in_part(taught: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    options, rows = replace(OPTIONS, concept_share=0.5, positions=1), rows_of(data[1])
    whole = RequestCollator(taught, data[0], options, 1)(rows)
    found = RequestCollator(taught, data[0], options, 1, negatives=3)(rows)
    assert len(found["items"]) < 40
    assert torch.equal(found["match"], whole["match"][:, found["items"]])
    assert torch.equal(found["vectors"], whole["vectors"])
    assert torch.equal(found["fits"], whole["fits"])


def loss_of(masks: RequestMaskModel, batch: dict[str, Tensor], options: GeneratorOptions, folder: Any) -> Tensor:
    arguments = generator_arguments(str(folder), options, 0, False)
    trainer = GeneratorTrainer(model=masks, args=arguments, options=options)
    loss: Tensor = trainer.compute_loss(masks, dict(batch))
    return loss


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@torch.no_grad()
def test_sampled_scores_are_columns_of_all(name: str, data: tuple[Catalogue, Split], item_ids: Tensor) -> None:
    pytest.importorskip("wordllama")
    masks, items = described(name, data[0]), torch.tensor([7, 0, 39, 12])
    positions = torch.tensor([[0, 7], [2, 1], [0, 0]])
    for request in (["more horror", None, "no comedy"], "more horror", None):
        for where in ({}, {"positions": positions}):
            whole = masks(item_ids, request=request, **where)
            found = masks(item_ids, items=items, request=request, **where)
            torch.testing.assert_close(found, whole[..., items], atol=1e-5, rtol=1e-5)
    frozen = masks(item_ids, items=items, request=None)
    found = masks(item_ids, items=items, request=["more horror", None, "no comedy"])
    assert torch.equal(found[1], frozen[1])
    assert (found - frozen)[[0, 2]].abs().amax(1).min() > 1e-3


def test_the_values_of_sampled_items_alone_are_made(data: tuple[Catalogue, Split], item_ids: Tensor) -> None:
    pytest.importorskip("wordllama")
    masks, made = described("sasrec", data[0]), []
    (keys,) = masks.generator.row_keys.values()
    assert keys is not None
    hook = keys.network.register_forward_hook(lambda *arguments: made.append(arguments[-1].shape))
    masks(item_ids, items=torch.tensor([7, 0, 39]), request="more horror")
    hook.remove()
    assert made == [(3, KEY_WIDTH)]


def test_the_default_can_be_trained_on_samples(data: tuple[Catalogue, Split]) -> None:
    pytest.importorskip("wordllama")
    for name, expected in (("sasrec", 5), ("gru4rec", 5), ("bert4rec", None)):
        masks = described(name, data[0])
        assert generator_negatives(masks, None) is None  # 40 items are few
        if expected is None:
            with pytest.raises(ConfigError, match="cannot score some items alone"):
                generator_negatives(masks, 5)
        else:
            assert generator_negatives(masks, 5) == 5
    for given, expected in (({"row_features": ["head"]}, None), ({"target_modules": ["intermediate.dense"]}, 5)):
        masks = inject_request_masks(
            make_backbone("sasrec", 40, max_length=8, hidden_size=16), RequestMaskConfig(request_dim=4, **given)
        )
        if expected is None:
            with pytest.raises(ConfigError, match="masks each item's score"):
                generator_negatives(masks, 5)
        else:
            assert generator_negatives(masks, 5) == 5


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("floor", [None, 0.1])
@pytest.mark.parametrize("kind", ["inside", "default"])
def test_a_sample_of_all_items_gives_the_loss_and_gradients_of_all(
    name: str, floor: float | None, kind: str, data: tuple[Catalogue, Split], tmp_path: Any
) -> None:
    if kind == "default":
        pytest.importorskip("wordllama")
    masks = masked(name, 40) if kind == "inside" else described(name, data[0])
    rows, options = rows_of(data[1]), replace(OPTIONS, floor=floor)
    results = []
    for negatives in (None, 40):
        batch = RequestCollator(masks, data[0], options, 1, negatives=negatives)(rows)
        assert bool(batch["fits"].any())
        masks.zero_grad()
        loss = loss_of(masks, batch, options, tmp_path)
        loss.backward()
        results.append((loss.detach(), [parameter.grad.clone() for parameter in masks.generator.parameters()]))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert any(bool(gradient.any()) for gradient in results[0][1])
    for found, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def kept(name: str, items: int, negatives: int | None, folder: Any) -> int:
    """Elements of the largest tensor, other than a parameter, that a step keeps for its gradients."""
    flags = functional.one_hot(torch.arange(items) % 3, 3).bool()
    ids = tuple(map(str, range(items)))
    catalogue = Catalogue(ids, ids, ("Comedy", "Drama", "Horror"), flags)
    masks = masked(name, items)
    histories = [torch.randint(items, (9,), generator=torch.Generator().manual_seed(row)) for row in range(4)]
    rows = [HistoryWindows(histories, 8)[index] for index in range(4)]
    batch = RequestCollator(masks, catalogue, OPTIONS, 0, negatives=negatives)(rows)
    own = {parameter.untyped_storage().data_ptr() for parameter in masks.parameters()}
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(masks, batch, OPTIONS, folder)
    loss.backward()
    return max(sizes)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_memory_does_not_grow_with_the_catalogue(name: str, tmp_path: Any) -> None:
    small, large = (kept(name, items, 64, tmp_path) for items in (10_000, 40_000))
    assert abs(small - large) < 1000  # of how many next items two positions share
    assert max(small, large) < 10_000
    assert kept(name, 10_000, None, tmp_path) >= 10 * 10_000  # the check sees what it is for


def trained(data: tuple[Catalogue, Split], negatives: int | None, **options: Any) -> Tensor:
    masks = masked("sasrec", 40, **options)
    train_generator(masks, *data, OPTIONS, progress=False, negatives=negatives)
    weight: Tensor = masks.generator.head.weight.detach()
    return weight


def test_it_is_chosen_by_size_where_it_can_be_done(
    data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, sampled = trained(data, None), trained(data, 5)
    assert not torch.allclose(whole, sampled)
    torch.testing.assert_close(trained(data, 40), whole, rtol=1e-3, atol=1e-5)
    head = {"target_modules": ["output.dense", "head"]}
    with_head = trained(data, None, **head)
    monkeypatch.setattr("cramer_peft.recsys.backbones.sampling.FULL_SOFTMAX_ITEMS", 40)
    monkeypatch.setattr("cramer_peft.recsys.backbones.sampling.DEFAULT_NEGATIVES", 5)
    assert torch.equal(trained(data, None), sampled)
    assert torch.equal(trained(data, None, **head), with_head)


@pytest.mark.parametrize(
    ("name", "targets", "negatives", "message"),
    [
        ("sasrec", None, 0, "found 0 for SASRec"),
        ("sasrec", ["output.dense", "head"], 5, "masks of 'head', which masks each item's score"),
        ("bert4rec", None, 5, "BERT4Rec, which cannot score some items alone"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    name: str, targets: list[str] | None, negatives: int, message: str, data: tuple[Catalogue, Split]
) -> None:
    masks = masked(name, 40, **({} if targets is None else {"target_modules": targets}))
    with pytest.raises(ConfigError, match=message):
        train_generator(masks, *data, OPTIONS, progress=False, negatives=negatives)
