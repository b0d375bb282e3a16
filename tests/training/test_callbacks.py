from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.errors import ConfigError
from cramer_peft.masks import TopKForm
from cramer_peft.training import TemperatureCallback, set_temperature

pytest.importorskip("accelerate")


def temperatures(masks: RequestMaskModel, folder: Path, steps: int) -> list[float]:
    """The temperature at each step from 0 to ``steps``."""
    callback, state = TemperatureCallback(masks), TrainerState(max_steps=steps + 1)
    arguments = TrainingArguments(output_dir=str(folder))
    found = []
    for state.global_step in range(steps + 1):
        callback.on_step_begin(arguments, state, TrainerControl())
        gate = masks.generator.form
        assert isinstance(gate, TopKForm)
        found.append(gate.temperature)
    return found


def test_half_a_cosine_from_start_to_end(
    model: nn.Module, make_config: Callable[..., RequestMaskConfig], tmp_path: Path
) -> None:
    masks = inject_request_masks(model, make_config("topk", temperature_start=0.9, temperature_end=0.1))
    found = temperatures(masks, tmp_path, 20)
    assert found[0] == pytest.approx(0.9)
    assert found[10] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(found))


def test_it_follows_the_active_adapter(
    model: nn.Module, make_config: Callable[..., RequestMaskConfig], tmp_path: Path
) -> None:
    masks = inject_request_masks(model, make_config("topk", temperature_start=0.9, temperature_end=0.1))
    masks.add_adapter("other", make_config("topk", temperature_start=0.6, temperature_end=0.2))
    masks.set_adapter("other")
    assert temperatures(masks, tmp_path, 4)[::4] == pytest.approx([0.6, 0.2])


@pytest.mark.parametrize("gate", ["low_rank", "scale"])
def test_nothing_for_other_gates(
    gate: str, model: nn.Module, make_config: Callable[..., RequestMaskConfig], tmp_path: Path
) -> None:
    masks = inject_request_masks(model, make_config(gate))
    before = dict(vars(masks.generator.form))
    arguments = TrainingArguments(output_dir=str(tmp_path))
    TemperatureCallback(masks).on_step_begin(arguments, TrainerState(max_steps=2), TrainerControl())
    assert vars(masks.generator.form) == before


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("exponential", 0.3)])
def test_any_loop_sets_the_temperature_by_a_schedule(
    schedule: str, middle: float, model: nn.Module, make_config: Callable[..., RequestMaskConfig]
) -> None:
    given = {"temperature_start": 0.9, "temperature_end": 0.1, "temperature_schedule": schedule}
    masks = inject_request_masks(model, make_config("topk", **given))
    found = [set_temperature(masks, step / 4) for step in range(5)]
    assert found[::2] == pytest.approx([0.9, middle, 0.1])
    assert all(later < earlier for earlier, later in pairwise(found))  # type: ignore[operator]
    assert masks.generator.form.temperature == found[-1]  # type: ignore[attr-defined]
    quarter = {"cosine": 0.783, "linear": 0.7, "exponential": 0.52}[schedule]
    assert found[1] == pytest.approx(quarter, abs=1e-3)
    with pytest.raises(ConfigError, match=r"done: found 1\.5"):
        set_temperature(masks, 1.5)


def test_no_temperature_of_other_forms(model: nn.Module, make_config: Callable[..., RequestMaskConfig]) -> None:
    assert set_temperature(inject_request_masks(model, make_config("signed")), 0.5) is None
