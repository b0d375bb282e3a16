"""The batches that a generator is trained on are those of a plain reference, which makes them row by row."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.split import Split
from cramer_peft.recsys.requests.attributes import AttributeRequest, RequestGenerator
from cramer_peft.recsys.requests.catalogue_encoder import CatalogueEncoder
from cramer_peft.recsys.requests.concepts import ConceptGenerator
from cramer_peft.recsys.requests.text_encoders import without_cache
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.generator_training import GeneratorOptions, HistoryWindows, RequestCollator

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")

SEED = 3


class PlainConcepts(ConceptGenerator):
    """Computes what weighs nothing too."""

    def _nearness(self, item: int) -> Tensor:
        by_embedding = self._rng.choice((0.0, 0.0, 0.3, 1.0))
        noise = self._rng.choice((0.0, 0.1, 0.3))
        near = (1 - by_embedding) * (self._text @ self._text[item])
        near = near + by_embedding * (self._embedding @ self._embedding[item])
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
            concepts = PlainConcepts(self.encoder.features, rng, generator)
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
            vector = self.encoder.concept(concept.wanted, concept.unwanted)
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
        torch.testing.assert_close(found.pop("vectors"), expected.pop("vectors"))
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
