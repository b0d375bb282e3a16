"""What every backbone must pass: masks have an effect, rows are independent, unloading restores."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import MaskState, RequestMaskConfig, RequestMaskLayer, RequestMaskModel, inject_request_masks
from cramer_peft.recsys.backbones import OwnBackbone, padded_left
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import pad_histories
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender

FIRST = ["more horror", None, "nothing sad"]
OTHER_NEIGHBOURS = ["more horror", "quiet", None]
OTHERS = ["something old", "quiet", "a happy end"]
MOVED, ROUNDING = 1e-4, 1e-5

Batch = dict[str, Any]


@dataclass(frozen=True)
class Backbone:
    """How to build a model that we did not write, and how to call it.

    Attributes:
        package: Distribution that the model comes from.
        name: The model.
        build: Makes a tiny one with its own classes.
        batch: Makes the inputs of three rows.
        score: Scores, or hidden states, of a batch, by a method of the model's own: rows first.
        target_modules: What is masked.
        train_score: The same in train mode, where that is another method.
        config: Fields of the configuration beside these.
        frozen_rows_exact: Whether rows without a request are the frozen model's bit for bit, or to float
            rounding (torch's fused attention).
        notes: What the table in the docs says beside the results.
    """

    package: str
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    score: Callable[[nn.Module, Batch], Tensor]
    target_modules: list[str] | str | None
    train_score: Callable[[nn.Module, Batch], Tensor] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    frozen_rows_exact: bool = True
    notes: str = ""

    def make(self) -> nn.Module:
        """The model with the same weights each time, frozen, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().eval().requires_grad_(False)
            with torch.no_grad():
                for parameter in model.parameters():  # fresh models differ little from one item to the next
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    def adapt(self, model: nn.Module, gate: str) -> RequestMaskModel:
        """Masks on ``model``, with random gates."""
        options: dict[str, Any] = {"encoder": "hashing", "encoder_options": {"dim": 16}, "init_weights": False}
        if gate == "topk":
            options["drop_ratio"] = 0.3
        config = RequestMaskConfig(gate=gate, target_modules=self.target_modules, **options, **self.config)
        return inject_request_masks(model, config)

    @torch.no_grad()
    def scores(self, model: nn.Module, batch: Batch | None = None) -> Tensor:
        return self.score(model, self.batch() if batch is None else batch).clone()

    def seeded(self, model: nn.Module) -> Tensor:
        """Scores in train mode, with the same dropout each time."""
        torch.manual_seed(1)
        return (self.train_score or self.score)(model, self.batch())


def rows_of(batch: Any, rows: slice) -> Any:
    """Some rows of a batch, however its tensors are nested."""
    if isinstance(batch, dict):
        return {name: rows_of(value, rows) for name, value in batch.items()}
    return batch[rows] if isinstance(batch, Tensor) else batch


def masked_parts(model: nn.Module) -> str:
    """Ends of the masked modules' names, with ``*`` for an index, and their gated parts."""
    found: dict[str, None] = {}
    for module in model.modules():
        if isinstance(module, RequestMaskLayer):
            parts = [part for part in module.masked_parts() if part]
            name = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module.module_name)
            end = ".".join(name.split(".")[-2:]).removeprefix("*.")
            found[f"`{end}`" + (f" ({', '.join(parts)})" if parts else "")] = None
    return ", ".join(found)


def moved(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > MOVED)


def one_at_a_time(state: MaskState) -> Iterator[tuple[str, MaskState]]:
    """For each masked part of a ``low_rank`` state, the state that leaves every other part as it is."""
    for entry in state.tensors:
        tensors = {
            name: {
                part: value if name == entry or part != "a" else torch.zeros_like(value) for part, value in it.items()
            }
            for name, it in state.tensors.items()
        }
        yield entry, dataclasses.replace(state, tensors=tensors)


class BackboneContract:
    """The tests; a test file subclasses it and lists its ``BACKBONES``."""

    @pytest.fixture(autouse=True)
    def _described(self, backbone: Backbone, record_property: Callable[[str, Any], None]) -> None:
        for name in ("package", "name", "notes"):
            record_property(name, getattr(backbone, name))

    def test_every_masked_part_has_an_effect_in_eval(
        self, backbone: Backbone, record_property: Callable[[str, Any], None]
    ) -> None:
        model = backbone.make()
        frozen = backbone.scores(model)
        masks = backbone.adapt(model, "low_rank")
        with torch.no_grad():
            states = dict(one_at_a_time(masks.mask_state(FIRST)))
        record_property("masked", masked_parts(model))
        without = []
        for entry, state in states.items():
            with masks.request(state):
                scores = backbone.scores(model)
            if not (moved(scores[0], frozen[0]) and moved(scores[2], frozen[2])):
                without.append(entry)
        assert without == []

    def test_every_masked_part_has_an_effect_in_train(self, backbone: Backbone) -> None:
        model = backbone.make()
        masks = backbone.adapt(model, "low_rank")
        model.train()
        with torch.no_grad():
            states = dict(one_at_a_time(masks.mask_state(FIRST)))
            others = dict(one_at_a_time(masks.mask_state(OTHERS)))
            without = []
            for entry, state in states.items():
                with masks.request(state):
                    scores = backbone.seeded(model)
                    assert torch.equal(backbone.seeded(model), scores)
                with masks.request(others[entry]):
                    if not moved(backbone.seeded(model), scores):
                        without.append(entry)
        assert without == []

    def test_check_effect_finds_nothing(self, backbone: Backbone) -> None:
        model, batch = backbone.make(), backbone.batch()
        masks = backbone.adapt(model, "scale")
        in_train = backbone.train_score or backbone.score
        effects = masks.check_effect(call=lambda: (in_train if model.training else backbone.score)(model, batch))
        assert {effect.mode for effect in effects} == {"train", "eval"}
        assert all(effect.calls > 0 and effect.change > MOVED for effect in effects)

    def test_the_generator_gets_gradients_in_train(self, backbone: Backbone, gate: str) -> None:
        model = backbone.make()
        masks = backbone.adapt(model, gate)
        model.train()
        with masks.request(FIRST):
            backbone.seeded(model).square().sum().backward()
        gradient = masks.generator.head.weight.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

    def test_rows_do_not_depend_on_their_neighbours(self, backbone: Backbone, gate: str) -> None:
        model = backbone.make()
        frozen = backbone.scores(model)
        masks = backbone.adapt(model, gate)
        with masks.request(FIRST):
            together = backbone.scores(model)
        with masks.request(OTHER_NEIGHBOURS):
            otherwise = backbone.scores(model)
        assert torch.equal(otherwise[0], together[0])
        assert moved(together[0], frozen[0])
        assert moved(together[2], frozen[2])
        for row, request in enumerate(FIRST):
            with masks.request([request]):
                alone = backbone.scores(model, rows_of(backbone.batch(), slice(row, row + 1)))
            torch.testing.assert_close(alone[0], together[row], rtol=ROUNDING, atol=ROUNDING)

    def test_a_row_without_a_request_is_the_frozen_models(
        self, backbone: Backbone, gate: str, record_property: Callable[[str, Any], None]
    ) -> None:
        model = backbone.make()
        frozen = backbone.scores(model)
        masks = backbone.adapt(model, gate)
        with masks.request(FIRST):
            together = backbone.scores(model)
        record_property("difference", float((together[1] - frozen[1]).abs().max()))
        if backbone.frozen_rows_exact:
            assert torch.equal(together[1], frozen[1])
        torch.testing.assert_close(together[1], frozen[1], rtol=ROUNDING, atol=ROUNDING)
        assert torch.equal(backbone.scores(model), frozen)

    def test_unloading_gives_back_the_very_model(self, backbone: Backbone, gate: str, snapshot: Any) -> None:
        model = backbone.make()
        before, frozen = snapshot(model), backbone.scores(model)
        masks = backbone.adapt(model, gate)
        with masks.request(FIRST):
            assert moved(backbone.scores(model), frozen)
        assert masks.unload() is model
        assert before.differences(model) == []
        assert torch.equal(backbone.scores(model), frozen)


def adapter_of(package: str, **names: Any) -> type[Any]:
    """The adapter that ``docs/any-recommender.md`` shows for a package; ``names`` are what its code needs."""
    page = (Path(__file__).parents[2] / "docs" / "any-recommender.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf'^```python title="{package}"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    names |= {"torch": torch, "nn": nn, "Tensor": Tensor, "Catalogue": Catalogue, "OwnBackbone": OwnBackbone}
    exec(block, names | {"padded_left": padded_left}, made := {})
    (found,) = made.values()
    assert len(block.splitlines()) <= 13
    return found


def numbered_catalogue(item_ids: Iterable[object]) -> Catalogue:
    """Items of two genres."""
    ids = tuple(map(str, item_ids))
    flags = torch.tensor([[not item % 2, bool(item % 2)] for item in range(len(ids))])
    return Catalogue(ids, tuple(f"Film {item_id}" for item_id in ids), ("comedy", "horror"), flags)


def check_own_backbone(backbone: OwnBackbone, catalogue: Catalogue, expected: Callable[[list[int]], Tensor]) -> None:
    """Check that an adapter scores as the package does, and that its lists follow requests.

    ``expected`` gives the package's scores of all items of the catalogue after one history.
    """
    backbone = backbone.eval().requires_grad_(False)
    histories = [[0, 3, 1], [2], [4, 5, 0, 1, 3]]
    config = RequestMaskConfig(encoder="hashing", encoder_options={"dim": 16}, init_weights=False)
    recommender = RequestRecommender(mask_backbone(backbone, catalogue, config), catalogue)
    scores = recommender.scores([torch.tensor(history) for history in histories])
    for row, history in enumerate(histories):
        torch.testing.assert_close(scores[row], expected(history), rtol=ROUNDING, atol=ROUNDING)
    answers = recommender.recommend(histories, FIRST, strength=50.0, k=len(catalogue))
    assert answers[0].items != answers[0].frozen_items
    assert answers[1].items == answers[1].frozen_items
    for answer, history, request in zip(answers, histories, FIRST, strict=True):
        assert not set(answer.items) & set(history)
        assert answer.items == recommender.recommend(history, request, strength=50.0, k=len(catalogue)).items
    item_ids = pad_histories([torch.tensor(history) for history in histories], backbone.max_length)
    positions = torch.tensor([[0, 2], [0, 0], [1, 4]])
    with torch.no_grad():
        each = recommender.masks(item_ids, positions=positions, request=None)
    torch.testing.assert_close(each[0, 1], scores[0], rtol=ROUNDING, atol=ROUNDING)
    assert each.shape == (3, 2, len(catalogue))
