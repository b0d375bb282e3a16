from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError
from cramer_peft.masks import TopKForm
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.evaluation.results import mean_metrics
from cramer_peft.recsys.evaluation.tracks import Track, mixed_tracks
from cramer_peft.recsys.evaluation.users import EvaluationUsers, mask_scorer
from cramer_peft.recsys.requests.attribute_requests import RequestGenerator
from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions

pytest.importorskip("accelerate")
FEW = GeneratorOptions(steps=3, batch_size=8)
Configure = Callable[..., RequestMaskConfig]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Concept]:
    """The concepts that are drawn."""
    made: list[Concept] = []
    draw = ConceptGenerator.__call__
    monkeypatch.setattr(ConceptGenerator, "__call__", lambda self, among: made.append(draw(self, among)) or made[-1])
    return made


def test_training_with_concepts(taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]) -> None:
    before = taught.generator.head.weight.detach().clone()
    train_generator(taught, *data, FEW, progress=False)
    assert drawn
    assert not torch.equal(taught.generator.head.weight, before)
    item_ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(taught(item_ids, request="surprise me"), taught(item_ids, request=None))


def test_only_the_generator_is_trained(sasrec: SASRec, hashing: Configure, data: tuple[Catalogue, Split]) -> None:
    before = {name: value.clone() for name, value in sasrec.state_dict().items()}
    item_ids = torch.tensor([[1, 5, 9]])
    frozen = sasrec(item_ids)
    masks = inject_request_masks(sasrec, hashing())
    generator = {name: value.clone() for name, value in masks.generator.state_dict().items()}
    dropouts = [module for module in sasrec.modules() if isinstance(module, torch.nn.Dropout)]
    modes: list[bool] = []
    hooks = [module.register_forward_hook(lambda its, *_: modes.append(its.training)) for module in dropouts]
    train_generator(masks, *data, FEW, progress=False)
    for hook in hooks:
        hook.remove()
    assert modes
    assert not any(modes)  # a frozen backbone without dropout
    assert not any(module.training for module in masks.modules())
    assert any(not torch.equal(value, generator[name]) for name, value in masks.generator.state_dict().items())
    assert torch.equal(masks(item_ids, request=None), frozen)
    masks.unload()
    assert list(sasrec.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in sasrec.state_dict().items())
    assert not any(module.training for module in sasrec.modules())
    assert all(parameter.grad is None for parameter in sasrec.parameters())


def test_training_is_repeatable(
    data: tuple[Catalogue, Split], make_sasrec: Callable[..., SASRec], hashing: Configure
) -> None:
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        masks = inject_request_masks(make_sasrec(), hashing())
        torch.manual_seed(seed + 10 * len(weights))  # the global state before does not matter
        train_generator(masks, *data, FEW, seed=seed, progress=False)
        weights.append(masks.generator.head.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_learns_to_follow_requests(
    sasrec: SASRec,
    hashing: Configure,
    data: tuple[Catalogue, Split],
    users: EvaluationUsers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {family: templates[:3] for family, templates in TRAIN_TEMPLATES.items()}  # hashing knows no synonyms
    monkeypatch.setattr("cramer_peft.recsys.training.request_batches.TRAIN_TEMPLATES", few)
    tracks = mixed_tracks(users, RequestGenerator(data[0].attributes, few), seed=0)
    masks = inject_request_masks(sasrec, hashing(gate="low_rank", rank=4))

    def measure() -> dict[str, float]:
        return mean_metrics(mask_scorer(masks), mask_scorer(masks), users, tracks, k=5)

    before = measure()
    assert before["overlap_empty"] == 1  # the identity at the start
    options = GeneratorOptions(
        steps=120,
        learning_rate=2e-2,
        batch_size=32,
        positions=4,
        random_share=0.4,
        empty_share=0.2,
        edit_weight=1.0,
        next_item_weight=0.1,
        kappa=8.0,
        floor=0.3,
    )
    train_generator(masks, *data, options, progress=False)
    after = measure()
    assert after["satisfaction"] > before["satisfaction"] + 0.08
    assert after["favourite"] < before["favourite"] - 0.04
    assert after["ndcg"] > before["ndcg"] + 0.05
    assert after["overlap_empty"] > 0.6
    assert after["overlap_blank"] == 1


def test_the_papers_training(
    data: tuple[Catalogue, Split], make_sasrec: Callable[..., SASRec], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RequestMaskConfig.paper(encoder="hashing", encoder_options={"dim": 32}, drop_ratio=0.2)
    masks = inject_request_masks(make_sasrec(), config)
    drew_noise, binary = [], TopKForm._binary
    monkeypatch.setattr(TopKForm, "_binary", lambda *arguments: drew_noise.append(arguments[-1]) or binary(*arguments))
    before = masks.generator.head.weight.detach().clone()
    train_generator(masks, *data, GeneratorOptions.paper(steps=3, batch_size=8), progress=False)
    assert drew_noise == [True] * 3
    assert not torch.equal(masks.generator.head.weight, before)
    form = masks.generator.form
    assert isinstance(form, TopKForm)
    assert form.temperature == pytest.approx(0.3)  # annealed to the end
    masks(torch.tensor([[1, 2]]), request=["more horror"])
    assert drew_noise[3:] == [False]


def test_the_sparsity_loss_is_for_topk_only(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    with pytest.raises(ConfigError, match="gate='topk', but gate is 'low_rank'"):
        train_generator(masks, *data, replace(FEW, sparsity_weight=0.1), progress=False)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_masks_come_back_from_an_accelerator(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    train_generator(masks, *data, FEW, progress=False)
    assert all(parameter.device.type == "cpu" for parameter in masks.parameters())


def test_the_targets_are_not_looked_at(
    data: tuple[Catalogue, Split], make_sasrec: Callable[..., SASRec], hashing: Configure, tracks: dict[str, Track]
) -> None:
    catalogue, split = data
    nowhere = torch.full_like(split.test_target, -7)
    weights = []
    for part in (split, replace(split, test_target=nowhere, validation_target=nowhere)):
        torch.manual_seed(0)
        masks = inject_request_masks(make_sasrec(), hashing())
        train_generator(masks, catalogue, part, FEW, progress=False)
        weights.append(masks.generator.head.weight)
    assert torch.equal(*weights)
