from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.errors import ConfigError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.data.splits import Split
from cramer_peft.recsys.requests.attribute_requests import AttributeRequest, RequestGenerator
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder, without_cache
from cramer_peft.recsys.requests.concepts import Concept, ConceptGenerator
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator

pytest.importorskip("accelerate")
FEW = GeneratorOptions(steps=3, batch_size=8)
SEED = 3


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
        train_generator(masks, *data, replace(FEW, attributes=("nonsense",)), progress=False)


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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Concept]:
    """The concepts that are drawn."""
    made: list[Concept] = []
    draw = ConceptGenerator.__call__
    monkeypatch.setattr(ConceptGenerator, "__call__", lambda self, among: made.append(draw(self, among)) or made[-1])
    return made


def test_concepts_take_the_place_of_requests(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], drawn: list[Concept]
) -> None:
    _, batch = batch_of(taught, data, replace(FEW, concept_share=1.0, positions=8))
    encoder = without_cache(taught.encoder())
    assert len(drawn) == len(batch["vectors"])
    for row, concept in enumerate(drawn):
        alone = encoder.concepts([(concept.wanted, concept.unwanted)])[0]
        torch.testing.assert_close(batch["vectors"][row], alone, rtol=1e-3, atol=1e-3)  # a batch rounds otherwise
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
    drawn = collator._draw(torch.ones(2000, 3, dtype=torch.long), torch.zeros(2000, 3, dtype=torch.long))[0]
    requests = [one.match for one in drawn if isinstance(one.match, AttributeRequest)]
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


def test_the_papers_options_follow_overrides() -> None:
    options = GeneratorOptions.paper(steps=7, sparsity_weight=0.5)
    assert (options.steps, options.sparsity_weight) == (7, 0.5)
    assert (options.random_share, options.empty_share, options.edit_weight, options.concept_share) == (0, 0, 0, 0)


class PlainConcepts(ConceptGenerator):
    """Computes what weighs nothing too."""

    def _nearness(self, item: int, texts: Tensor, embeddings: Tensor) -> Tensor:
        by_embedding = self._rng.choice((0.0, 0.0, 0.3, 1.0))
        noise = self._rng.choice((0.0, 0.1, 0.3))
        near = (1 - by_embedding) * (texts @ texts[item]) + by_embedding * (embeddings @ embeddings[item])
        return near + noise * torch.randn(len(near), generator=self._generator)


class PlainCollator:
    """Draws, reads and matches one row after the other."""

    def __init__(self, encoder: Any, catalogue: Catalogue, options: GeneratorOptions) -> None:
        self.encoder, self.catalogue, self.options, self.batches = encoder, catalogue, options, 0
        self.allowed = catalogue.attributes if options.attributes is None else options.attributes
        columns = [catalogue.attributes.index(name) for name in self.allowed]
        weights = [1.0 + int(catalogue.item_attributes[:, column].sum()) for column in columns]
        self.requests = RequestGenerator(self.allowed, TRAIN_TEMPLATES, weights)

    def __call__(self, windows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        rng, generator = random.Random(f"{SEED} {self.batches}"), torch.Generator()
        generator.manual_seed(rng.getrandbits(63))
        self.batches += 1
        asked = [self.request(window["labels"], rng) for window in windows]
        noise = torch.rand(len(windows), len(windows[0]["labels"]), generator=generator)
        drawn: list[Any] = [None] * len(windows)
        if isinstance(self.encoder, CatalogueEncoder):
            concepts = PlainConcepts(self.encoder.texts, self.encoder.embeddings, rng, generator)
            chosen = [rng.random() < self.options.concept_share for _ in windows]
            drawn = [concepts() if own else None for own in chosen]
        rows = [self.row(*parts) for parts in zip(windows, asked, drawn, noise, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def request(self, labels: Tensor, rng: random.Random) -> tuple[AttributeRequest, bool]:
        draw = rng.random()
        if draw < self.options.empty_share:
            return self.requests.empty(rng), False
        if draw < self.options.empty_share + self.options.random_share:
            return self.requests.counterfactual(rng), False
        known = [item for item in labels.tolist() if item >= 0]
        names = self.catalogue.attribute_names(known[rng.randrange(len(known))])
        return self.requests.truthful([name for name in names if name in self.allowed], rng), True

    def row(
        self, window: dict[str, Tensor], asked: tuple[AttributeRequest, bool], concept: Any, noise: Tensor
    ) -> dict[str, Tensor]:
        request, truthful = asked
        items = range(len(self.catalogue))
        if concept is None:
            vector = self.encoder.encode([request.text])[0]
            names = [set(self.catalogue.attribute_names(item)) for item in items]
            match = [share(request.wanted, own) - share(request.unwanted, own) for own in names]
            fits = [set(request.wanted) <= own and not set(request.unwanted) & own and truthful for own in names]
        else:
            vector = self.encoder.concepts([(concept.wanted, concept.unwanted)])[0]
            sides = [[0] * len(items) if side is None else side.int().tolist() for side in vars(concept).values()]
            match = [wanted - unwanted for wanted, unwanted in zip(*sides, strict=True)]
            fits = [value > 0 and concept.unwanted is None for value in match]
        labels = window["labels"]
        known = labels >= 0
        suits = torch.tensor([item >= 0 and fits[item] for item in labels.tolist()])
        positions = (noise + known + suits).topk(self.options.positions).indices
        return {
            "item_ids": window["item_ids"],
            "vectors": vector,
            "positions": positions,
            "targets": labels[positions],
            "known": known[positions],
            "fits": suits[positions],
            "match": torch.tensor(match, dtype=torch.float32),
        }


def share(named: tuple[str, ...], own: set[str]) -> float:
    return sum(name in own for name in named) / max(1, len(named))


@pytest.mark.parametrize("kind", ["masks", "taught"])
@pytest.mark.parametrize("held", [0, 1])
def test_batches_are_those_of_a_plain_loop(
    kind: str, held: int, data: tuple[Catalogue, Split], request: pytest.FixtureRequest
) -> None:
    masks: RequestMaskModel = request.getfixturevalue(kind)
    catalogue, split = data
    options = GeneratorOptions(positions=5, attributes=catalogue.attributes[held:])
    windows = HistoryWindows(split.train, 8)
    rows = [windows[index] for index in range(len(windows))]
    collator = RequestCollator(masks, catalogue, options, SEED)
    reference = PlainCollator(without_cache(masks.encoder()), catalogue, options)
    for _ in range(4):
        found, expected = collator(rows), reference(rows)
        assert found.keys() == expected.keys()
        # meanings of a batch of sets are solved together, which rounds otherwise
        torch.testing.assert_close(found.pop("vectors"), expected.pop("vectors"), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.pop("match"), expected.pop("match"))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_requests_that_no_concept_replaces_are_read(
    taught: RequestMaskModel, data: tuple[Catalogue, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = type(taught).encode
    monkeypatch.setattr(type(taught), "encode", lambda self, texts: (read.append(len(texts)), encode(self, texts))[1])
    windows = HistoryWindows(data[1].train, 8)
    rows = [windows[index] for index in range(len(windows))]
    for concept_share, bounds in ((0.0, (len(rows), len(rows))), (0.5, (1, len(rows) - 1)), (1.0, (0, 0))):
        batch = RequestCollator(taught, data[0], GeneratorOptions(concept_share=concept_share), SEED)(rows)
        assert bounds[0] <= read[-1] <= bounds[1]
        assert bool(torch.isfinite(batch["vectors"]).all())
