from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError, DataError
from cramer_peft.gates import TopKGate
from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.evaluation.evaluation import EvaluationUsers, Tracks, evaluate, make_tracks
from cramer_peft.recsys.evaluation.metrics import ndcg, target_ranks
from cramer_peft.recsys.requests.attributes import RequestGenerator
from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator
from cramer_peft.recsys.requests.text_encoders import without_cache
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import (
    BackboneOptions,
    GeneratorOptions,
    HistoryWindows,
    RequestCollator,
    score_histories,
    train_generator,
    train_sasrec,
)

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

FEW = GeneratorOptions(steps=3, batch_size=8)
Configure = Callable[..., RequestMaskConfig]


# --- HistoryWindows

histories_of_items = st.lists(st.lists(st.integers(0, 30), max_size=13), min_size=1, max_size=4)


@given(histories_of_items.filter(lambda rows: any(len(row) > 1 for row in rows)), st.integers(1, 6))
def test_every_transition_is_there_once(rows: list[list[int]], length: int) -> None:
    windows = HistoryWindows([torch.tensor(row, dtype=torch.long) for row in rows], length)
    found = []
    for window in (windows[index] for index in range(len(windows))):
        item_ids, labels = window["item_ids"].tolist(), window["labels"].tolist()
        assert len(item_ids) == len(labels) == length
        count = sum(item > 0 for item in item_ids)
        assert count >= 1
        assert item_ids[count:] == [0] * (length - count)
        assert labels[count:] == [-100] * (length - count)
        shifted = [item - 1 for item in item_ids[:count]]
        assert shifted[1:] == labels[: count - 1]  # a window is one stretch of a history
        found += zip(shifted, labels[:count], strict=True)
    assert sorted(found) == sorted(pair for row in rows for pair in pairwise(row))


def test_windows_by_hand() -> None:
    windows = HistoryWindows([torch.tensor([4, 5, 6, 7]), torch.tensor([9]), torch.tensor([1, 2])], 2)
    assert windows.item_ids.tolist() == [[6, 7], [5, 0], [2, 0]]
    assert windows.labels.tolist() == [[6, 7], [5, -100], [2, -100]]


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="no history has two items"):
        HistoryWindows([torch.tensor([1]), torch.tensor([], dtype=torch.long)], 4)


# --- SASRec


def validation_ndcg(model: SASRec, catalogue: Catalogue, split: Split) -> float:
    users = EvaluationUsers.of(catalogue, split, "validation", model.max_length)
    scores = score_histories(model, users.item_ids).masked_fill(users.seen, -torch.inf)
    return float(ndcg(target_ranks(scores, users.targets)).mean())


def test_training_a_backbone(
    data: tuple[Catalogue, Split], sasrec: SASRec, sasrec_options: BackboneOptions, make_sasrec: Callable[..., SASRec]
) -> None:
    untrained = validation_ndcg(make_sasrec(hidden_size=64), *data)
    assert validation_ndcg(sasrec, *data) > untrained + 0.08
    torch.manual_seed(123)
    again = train_sasrec(*data, sasrec_options, seed=0, progress=False)
    assert all(torch.equal(value, sasrec.state_dict()[name]) for name, value in again.state_dict().items())
    assert not any(module.training for module in again.modules())
    assert all(parameter.device.type == "cpu" for parameter in again.parameters())


def test_the_epoch_that_validates_best_is_returned(
    data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cramer_peft.recsys.training.generator_training import _BackboneTrainer

    seen: list[tuple[float, dict[str, Tensor]]] = []
    evaluate_once = _BackboneTrainer.evaluate

    def record(self: _BackboneTrainer, *args: object, **kwargs: object) -> dict[str, float]:
        metrics = evaluate_once(self, *args, **kwargs)
        seen.append((metrics["eval_ndcg@10"], {n: v.clone() for n, v in self.model.state_dict().items()}))
        return metrics

    monkeypatch.setattr(_BackboneTrainer, "evaluate", record)
    options = BackboneOptions(epochs=4, learning_rate=0.1, batch_size=8, patience=1, max_length=8)
    model = train_sasrec(*data, options, seed=1, progress=False)
    best = max(value for value, _ in seen)
    state = next(state for value, state in seen if value == best)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    values = [value for value, _ in seen]
    assert len(values) == 4 or values[-1] <= max(values[:-1])  # stopped early only without an improvement


def test_another_seed_gives_another_backbone(data: tuple[Catalogue, Split]) -> None:
    options = BackboneOptions(epochs=1, max_length=8)
    first, second = (train_sasrec(*data, options, seed=seed, progress=False) for seed in (1, 2))
    assert not torch.equal(first.bert.embeddings.word_embeddings.weight, second.bert.embeddings.word_embeddings.weight)


def test_the_test_targets_are_not_looked_at(data: tuple[Catalogue, Split]) -> None:
    catalogue, split = data
    blinded = replace(split, test_target=torch.full_like(split.test_target, -7))
    options = BackboneOptions(epochs=1, max_length=8)
    first, second = (train_sasrec(catalogue, part, options, progress=False) for part in (split, blinded))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_score_histories_keeps_the_mode(
    sasrec: SASRec, users: EvaluationUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramer_peft.recsys.training.generator_training._SCORING_BATCH", 7)
    expected = sasrec(users.item_ids)
    for training in (False, True):
        sasrec.train(training)
        found = score_histories(sasrec, users.item_ids)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
        assert all(module.training == training for module in sasrec.modules())


# --- RequestCollator


def batch_of(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], options: GeneratorOptions, seed: int = 0
) -> tuple[HistoryWindows, dict[str, Tensor]]:
    windows = HistoryWindows(data[1].train, 8)
    collator = RequestCollator(masks, data[0], options, seed)
    return windows, collator([windows[index] for index in range(len(windows))])


def test_batches(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    windows, batch = batch_of(masks, data, replace(FEW, positions=5, random_share=0.0, empty_share=0.0))
    rows = len(windows)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "item_ids": (rows, 8),
        "vectors": (rows, 32),
        "positions": (rows, 5),
        "targets": (rows, 5),
        "known": (rows, 5),
        "fits": (rows, 5),
        "match": (rows, 40),
    }
    assert torch.equal(batch["item_ids"], windows.item_ids)
    for row in range(rows):
        positions = batch["positions"][row]
        assert len(set(positions.tolist())) == 5
        assert torch.equal(batch["targets"][row], windows.labels[row, positions])
        assert torch.equal(batch["known"][row], batch["targets"][row] >= 0)
        known = int((windows.labels[row] >= 0).sum())
        assert batch["known"][row].sum() == min(known, 5)  # real positions before padding
    assert bool((batch["known"] | ~batch["fits"]).all())
    assert bool(batch["fits"].any(1).all())  # a true request is true of at least one next item


def test_requests_are_true_where_they_fit(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = data[0]
    made = []
    truthful = RequestGenerator.truthful
    monkeypatch.setattr(RequestGenerator, "truthful", lambda *arguments: made.append(truthful(*arguments)) or made[-1])
    _, batch = batch_of(masks, data, replace(FEW, random_share=0.0, empty_share=0.0))
    assert len(made) == len(batch["fits"])
    for row, request in enumerate(made):
        for fits, known, target in zip(
            *(batch[name][row].tolist() for name in ("fits", "known", "targets")), strict=True
        ):
            names = set(catalogue.attribute_names(target)) if known else set()
            true = known and set(request.wanted) <= names and not set(request.unwanted) & names
            assert fits == true
    assert torch.equal(batch["vectors"], masks.encode([request.text for request in made]))


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0)])
def test_requests_that_know_nothing_fit_nowhere(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], shares: tuple[float, float]
) -> None:
    _, batch = batch_of(masks, data, replace(FEW, random_share=shares[0], empty_share=shares[1]))
    assert not batch["fits"].any()
    assert bool((batch["match"] == 0).all(1).all()) == (shares[1] == 1)


def test_shares_of_requests(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = dict.fromkeys(("truthful", "counterfactual", "empty"), 0)

    def counting(name: str) -> Callable[..., object]:
        method = getattr(RequestGenerator, name)

        def call(*arguments: object) -> object:
            counts[name] += 1
            return method(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(RequestGenerator, name, counting(name))
    windows = HistoryWindows(data[1].train, 8)
    collator = RequestCollator(masks, data[0], replace(FEW, random_share=0.5, empty_share=0.2), 0)
    collator([windows[index % len(windows)] for index in range(1000)])
    assert counts["counterfactual"] == pytest.approx(500, abs=50)
    assert counts["empty"] == pytest.approx(200, abs=40)


def test_requests_name_only_what_they_may(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, split = data
    kept, held = catalogue.attributes[1:], catalogue.attributes[0]
    texts: list[str] = []
    monkeypatch.setattr(type(masks), "encode", lambda _, asked: (texts.extend(asked), torch.zeros(len(asked), 4))[1])
    windows = HistoryWindows(split.train, 8)
    collator = RequestCollator(masks, catalogue, replace(FEW, attributes=kept), 0)
    batch = collator([windows[index % len(windows)] for index in range(500)])
    assert sum(name.lower() in " ".join(texts).lower() for name in kept) == len(kept)
    assert not any(held.lower() in text.lower() for text in texts)
    assert bool(batch["fits"].any())


def test_attributes_are_the_catalogues(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        RequestCollator(masks, data[0], replace(FEW, attributes=("nonsense",)), 0)


def test_batches_depend_on_the_seed_alone(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    _, first = batch_of(masks, data, FEW, seed=4)
    torch.manual_seed(99)
    _, again = batch_of(masks, data, FEW, seed=4)
    _, other = batch_of(masks, data, FEW, seed=5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vectors"], other["vectors"])
    assert not torch.equal(first["positions"], other["positions"])


def test_no_more_positions_than_there_are(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    _, batch = batch_of(masks, data, replace(FEW, positions=100))
    assert batch["positions"].shape[1] == 8


# --- concepts


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Concept]:
    """The concepts that are drawn."""
    made: list[Concept] = []
    draw = ConceptGenerator.__call__
    monkeypatch.setattr(ConceptGenerator, "__call__", lambda self: made.append(draw(self)) or made[-1])
    return made


def test_concepts_take_the_place_of_requests(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    _, batch = batch_of(taught, data, replace(FEW, concept_share=1.0, positions=8))
    encoder = without_cache(taught.encoder())
    assert len(drawn) == len(batch["vectors"])
    for row, concept in enumerate(drawn):
        assert torch.equal(batch["vectors"][row], encoder.concept(concept.wanted, concept.unwanted))
        wanted, unwanted = (
            torch.zeros(40) if side is None else side.float() for side in (concept.wanted, concept.unwanted)
        )
        assert torch.equal(batch["match"][row], wanted - unwanted)
        for fits, known, target in zip(
            *(batch[name][row].tolist() for name in ("fits", "known", "targets")), strict=True
        ):
            true = concept.wanted is not None and concept.unwanted is None and known and bool(concept.wanted[target])
            assert fits == true


def test_concepts_are_a_share_beside_requests(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    windows = HistoryWindows(data[1].train, 8)
    many = [windows[index % len(windows)] for index in range(400)]
    batch = RequestCollator(taught, data[0], replace(FEW, concept_share=0.5, empty_share=0.2), 0)(many)
    assert len(drawn) == pytest.approx(200, abs=40)
    silent = (batch["vectors"] == 0).all(1)
    assert int(silent.sum()) == pytest.approx(40, abs=25)  # of the requests that ask nothing, half are left
    assert not batch["match"][silent].any()


def test_concepts_come_in_the_first_steps_alone(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    windows = HistoryWindows(data[1].train, 8)
    rows = [windows[index] for index in range(4)]
    collator = RequestCollator(taught, data[0], replace(FEW, steps=10, concept_share=1.0, concept_until=0.3), 0)
    counts = []
    for _ in range(10):
        collator(rows)
        counts.append(len(drawn))
        drawn.clear()
    assert counts == [4, 4, 4, 0, 0, 0, 0, 0, 0, 0]
    collator.start_at(2)  # as a training does that goes on from a checkpoint
    collator(rows)
    collator(rows)
    assert len(drawn) == 4


@pytest.mark.parametrize(("by_frequency", "share"), [(True, 0.9), (False, 1 / 3)])
def test_training_asks_against_what_items_have(masks: RequestMaskModel, by_frequency: bool, share: float) -> None:
    having = torch.zeros(97, 3, dtype=torch.bool)  # 89, 4 and 4 items, so with one more each .9, .05 and .05
    having[:89, 0] = having[89:93, 1] = having[93:, 2] = True
    names = tuple(map(str, range(97)))
    few = replace(FEW, random_share=1.0, empty_share=0.0, against_by_frequency=by_frequency)
    collator = RequestCollator(masks, Catalogue(names, names, ("drama", "horror", "war"), having), few, 0)
    requests = [request for request, _ in collator._draw(torch.zeros(2000, 3, dtype=torch.long))[0]]
    against = [request.unwanted[0] for request in requests if request.family == "against"]
    assert against.count("drama") / len(against) == pytest.approx(share, abs=0.07)


def test_concepts_do_not_change_what_texts_mean(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    texts = [f"{start} {name}" for start in ("more", "no") for name in ("horror", "comedy", "drama")]
    before = taught.encode(texts).clone()
    batch_of(taught, data, replace(FEW, concept_share=1.0))
    assert drawn
    assert torch.equal(taught.encode(texts), before)  # what is kept was not written over


def test_without_the_catalogue_there_are_no_concepts(
    masks: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    _, first = batch_of(masks, data, replace(FEW, concept_share=0.0))
    _, second = batch_of(masks, data, replace(FEW, concept_share=1.0))
    assert not drawn
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_baselines_are_taught_by_concepts_too(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    """They give their encoder where others give their masks."""
    _, ours = batch_of(taught, data, replace(FEW, concept_share=0.5))
    encoder: Any = taught.encoder().encoder
    _, theirs = batch_of(encoder, data, replace(FEW, concept_share=0.5))
    assert drawn
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_with_concepts(taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]) -> None:
    before = taught.generator.head.weight.detach().clone()
    train_generator(taught, *data, FEW, progress=False)
    assert drawn
    assert not torch.equal(taught.generator.head.weight, before)
    item_ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(taught(item_ids, request="surprise me"), taught(item_ids, request=None))


# --- train_generator


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
    monkeypatch.setattr("cramer_peft.recsys.training.generator_training.TRAIN_TEMPLATES", few)
    tracks = make_tracks(users, RequestGenerator(data[0].attributes, few), seed=0)
    frozen = score_histories(sasrec, users.item_ids)
    masks = inject_request_masks(sasrec, hashing(gate="low_rank", rank=4))

    def measure() -> dict[str, float]:
        return evaluate(lambda item_ids, texts: masks(item_ids, request=list(texts)), users, tracks, frozen, k=5)

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
    drew_noise, binary = [], TopKGate._binary
    monkeypatch.setattr(TopKGate, "_binary", lambda *arguments: drew_noise.append(arguments[-1]) or binary(*arguments))
    before = masks.generator.head.weight.detach().clone()
    train_generator(masks, *data, GeneratorOptions.paper(steps=3, batch_size=8), progress=False)
    assert drew_noise == [True] * 3
    assert not torch.equal(masks.generator.head.weight, before)
    gate = masks.generator.gate
    assert isinstance(gate, TopKGate)
    assert gate.temperature == pytest.approx(0.3)  # annealed to the end
    masks(torch.tensor([[1, 2]]), request=["more horror"])
    assert drew_noise[3:] == [False]


def test_the_papers_options_follow_overrides() -> None:
    options = GeneratorOptions.paper(steps=7, sparsity_weight=0.5)
    assert (options.steps, options.sparsity_weight) == (7, 0.5)
    assert (options.random_share, options.empty_share, options.edit_weight, options.concept_share) == (0, 0, 0, 0)


def test_the_sparsity_loss_is_for_topk_only(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    with pytest.raises(ConfigError, match="gate='topk', but gate is 'low_rank'"):
        train_generator(masks, *data, replace(FEW, sparsity_weight=0.1), progress=False)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_masks_come_back_from_an_accelerator(masks: RequestMaskModel, data: tuple[Catalogue, Split]) -> None:
    train_generator(masks, *data, FEW, progress=False)
    assert all(parameter.device.type == "cpu" for parameter in masks.parameters())


def test_the_targets_are_not_looked_at(
    data: tuple[Catalogue, Split], make_sasrec: Callable[..., SASRec], hashing: Configure, tracks: Tracks
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
