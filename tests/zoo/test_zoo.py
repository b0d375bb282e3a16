"""One set of promises over a zoo of hostile models: each is kept, or refused by name before anything has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from animals import LENGTH, ROWS, WIDTH, ZOO, Animal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks, validate
from cramer_peft.errors import CramerError

DIM = 5
LIVING = [name for name, animal in ZOO.items() if "inject" not in animal.refuses]
REFUSED = [name for name, animal in ZOO.items() if "inject" in animal.refuses]
living = pytest.mark.parametrize("name", LIVING)
several = settings(max_examples=2, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
forms = st.sampled_from(["low_rank", "scale", "signed", "topk"])
seeds = st.integers(0, 2**16)


class Keeper:
    """An animal with its masks, its input, the requests of its rows, and what it answers without any masks."""

    def __init__(self, name: str, seed: int = 0, form: str = "low_rank", masked: bool = True) -> None:
        self.animal, self.seed = ZOO[name], seed
        self.model, self.config = self.fresh(), self.configuration(form)
        generator = torch.Generator().manual_seed(seed)
        shape = (LENGTH, ROWS) if self.animal.sequence_first else (ROWS, LENGTH)
        x = torch.randint(20, shape, generator=generator) if self.animal.ids else None
        self.x = torch.randn(*shape, WIDTH, generator=generator).to(self.animal.dtype) if x is None else x
        self.vectors = 2 * torch.randn(ROWS, DIM, generator=generator)
        # A request for each row, or one for the whole batch where the model has no rows.
        self.requests = self.vectors[0] if "rows" in self.animal.refuses else self.vectors
        if masked:
            # Frozen as the masked model is: on some processors torch rounds a plain nn.GRU by whether its weights do.
            reference = self.fresh().requires_grad_(False)
            self.after(reference)
            self.frozen = self.tensor(reference(self.x))
            self.masks = inject_request_masks(self.model, self.config)
            self.after(self.masks.model)
            self.masks.eval()

    def fresh(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.animal.make().to(self.animal.dtype).eval()

    def configuration(self, form: str) -> RequestMaskConfig:
        options = {"drop_ratio": 0.5} if form == "topk" else {}
        defaults = {"gate": form, "target_modules": self.animal.targets, "request_dim": DIM, "init_weights": False}
        return RequestMaskConfig(**defaults, **options, **self.animal.options)

    def after(self, model: nn.Module) -> None:
        torch.manual_seed(self.seed + 1)
        self.animal.after(model)

    def tensor(self, output: Any) -> Tensor:
        """Return the first tensor of an output, rows first."""
        while not isinstance(output, Tensor):
            output = next(iter(output.values())) if isinstance(output, dict) else output[0]
        return output.detach().transpose(0, 1) if self.animal.sequence_first else output.detach()

    def answer(self, **request: Any) -> Tensor:
        return self.tensor(self.masks(self.x, **request))

    def row(self, row: int) -> Tensor:
        return self.x[:, row : row + 1] if self.animal.sequence_first else self.x[row : row + 1]

    def is_frozen(self, found: Tensor, expected: Tensor) -> bool:
        return torch.equal(found, expected) if self.animal.exact else self.is_close(found, expected)

    def is_close(self, found: Tensor, expected: Tensor) -> bool:
        tolerance = 0.1 if self.animal.dtype is torch.bfloat16 else 2e-5
        return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)

    def changes(self, before: Any) -> list[str]:
        """Return what has changed on the model since a snapshot; accelerate exchanges parameters in each call."""
        found = before.differences(self.model)
        return [change for change in found if not hasattr(self.model, "_hf_hook") or "identity of" not in change]

    @contextmanager
    def maybe_refused(self, step: str) -> Iterator[None]:
        """Expect the error that the table names for a step, or none."""
        if step not in self.animal.refuses:
            yield
            return
        with pytest.raises(CramerError, match=self.animal.refuses[step]):
            yield


@living
@several
@given(seed=seeds, form=forms)
def test_a_request_acts_on_its_row_alone(name: str, seed: int, form: str) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form)
        asked = keeper.answer(request=keeper.requests)
        moved = (asked - keeper.frozen).abs().flatten(1).amax(1)
        assert bool((moved > 1e-4).all())
        if keeper.requests.dim() == 1:
            return
        for row in range(ROWS if "compiled" not in name else 1):  # each shape is compiled anew
            others = -keeper.vectors
            others[row] = keeper.vectors[row]
            assert keeper.is_close(keeper.answer(request=others)[row], asked[row])
            alone = keeper.tensor(keeper.masks(keeper.row(row), request=keeper.vectors[row]))
            assert keeper.is_close(alone[0], asked[row])


@living
@several
@given(seed=seeds, form=forms, asked=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_without_a_request_it_is_the_frozen_model(name: str, seed: int, form: str, asked: list[bool]) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form)
        assert keeper.is_frozen(keeper.answer(), keeper.frozen)
        if keeper.requests.dim() > 1:
            requests = [vector if ask else None for vector, ask in zip(keeper.vectors, asked, strict=True)]
            found = keeper.answer(request=requests)
            for row in range(ROWS):
                assert asked[row] or keeper.is_frozen(found[row], keeper.frozen[row])
        with keeper.masks.disable_adapter(), keeper.masks.request(keeper.requests):
            assert keeper.is_frozen(keeper.answer(), keeper.frozen)


@living
@several
@given(seed=seeds, form=forms)
def test_a_merged_request_is_the_request(name: str, seed: int, form: str) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form)
        asked = keeper.answer(request=keeper.vectors[0])
        with keeper.maybe_refused("merge"):
            keeper.masks.merge_request(keeper.vectors[0])
        assert keeper.masks.merged == ("merge" not in keeper.animal.refuses)
        if keeper.masks.merged:
            assert keeper.is_close(keeper.answer(), asked)
            keeper.masks.unmerge()
        assert keeper.is_frozen(keeper.answer(), keeper.frozen)
        assert keeper.is_close(keeper.answer(request=keeper.vectors[0]), asked)


@living
@several
@given(seed=seeds, form=forms, train=st.booleans())
def test_unloading_gives_the_model_back(name: str, seed: int, form: str, train: bool, snapshot) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form, masked=False)
        model = keeper.model.train(train)
        before = snapshot(model)
        masks = inject_request_masks(model, keeper.config).eval()
        keeper.after(masks.model)
        masks(keeper.x, request=keeper.requests)
        assert masks.unload() is model
        if type(keeper.animal).after is keeper.animal.after:
            assert before.differences(model) == []
        model.eval()
        reference = keeper.fresh()
        keeper.after(reference)
        assert torch.equal(keeper.tensor(model(keeper.x)), keeper.tensor(reference(keeper.x)))


@living
@several
@given(seed=seeds, form=forms)
def test_saving_and_loading_gives_the_same_bits(name: str, seed: int, form: str, tmp_path) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form)
        keeper.masks.save_pretrained(tmp_path)
        again = load_request_masks(keeper.fresh(), tmp_path).eval()
        keeper.after(again.model)
        found = keeper.tensor(again(keeper.x, request=keeper.requests))
        assert torch.equal(found, keeper.answer(request=keeper.requests))


@living
def test_the_check_of_the_effect_finds_dependent_rows_alone(name: str, snapshot) -> None:
    with ZOO[name].around():
        keeper = Keeper(name)
        before = snapshot(keeper.model)
        with keeper.maybe_refused("rows"):
            effects = keeper.masks.check_effect(keeper.x)
            assert all(effect.change > 0 for effect in effects)
        assert keeper.changes(before) == []


@living
@several
@given(seed=seeds, form=forms)
def test_training_moves_the_generator_alone(name: str, seed: int, form: str, snapshot) -> None:
    with ZOO[name].around():
        keeper = Keeper(name, seed, form)
        masks, before = keeper.masks, snapshot(keeper.model)
        trained = [parameter for parameter in masks.parameters() if parameter.requires_grad]
        own = {id(parameter) for parameter in masks.generator.parameters()}
        assert keeper.animal.after is not Animal.after or {id(parameter) for parameter in trained} == own
        masks.train()
        with keeper.maybe_refused("train"):
            output = masks(keeper.x, request=keeper.requests)
            while not isinstance(output, Tensor):
                output = next(iter(output.values())) if isinstance(output, dict) else output[0]
            output.float().pow(2).sum().backward()
            assert any(bool(parameter.grad.abs().sum() > 0) for parameter in masks.generator.parameters())
        masks.eval()
        assert keeper.changes(before) == []
        assert keeper.is_frozen(keeper.answer(), keeper.frozen)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("door", [inject_request_masks, get_peft_model], ids=["ours", "peft"])
def test_what_cannot_be_right_is_refused_by_name(name: str, door: Callable, snapshot) -> None:
    keeper = Keeper(name, masked=False)
    before = snapshot(keeper.model)
    with keeper.maybe_refused("inject"):
        door(keeper.model, keeper.config)
    findings = [finding for finding in validate(keeper.model, keeper.config) if finding.fatal]
    assert findings
    assert findings[0].module is not None
    assert before.differences(keeper.model) == []
