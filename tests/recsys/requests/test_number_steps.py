import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.recsys.requests import number_steps
from cramer_peft.recsys.requests.number_steps import steps_of


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_each_value_is_a_step() -> None:
    found = steps_of({"year": column(1990, 1985, 1990, 2001)}, 4, 4)
    expected = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_an_unknown_number_is_on_no_step() -> None:
    found = steps_of({"price": column(3, torch.nan, 5), "year": column(torch.nan, 1990, 1990)}, 3, 3)
    assert torch.equal(found, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 1]]))


@pytest.mark.parametrize("numbers", [{}, {"year": column(torch.nan, torch.nan)}])
def test_without_numbers_there_are_no_steps(numbers: dict[str, Tensor]) -> None:
    assert steps_of(numbers, 2, 2).shape == (2, 0)


def test_an_added_item_is_on_the_next_step_of_the_others() -> None:
    found = steps_of({"year": column(1980, 1990, 1985, 2050, 1900)}, 5, 2)
    assert found.argmax(1).tolist() == [0, 1, 1, 1, 0]
    assert torch.equal(found[:2], steps_of({"year": column(1980, 1990)}, 2, 2))


def test_many_values_share_steps_of_equal_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_steps, "_MOST_STEPS", 4)
    found = steps_of({"price": torch.arange(40, dtype=torch.float64)}, 40, 40)
    assert found.shape == (40, 4)
    assert found.sum(0).tolist() == [10.0] * 4
    assert found.argmax(1).tolist() == sorted(found.argmax(1).tolist())


def test_a_range_of_years_is_a_sum_of_steps() -> None:
    years = torch.arange(1950, 2000).repeat(2).double()
    steps = steps_of({"year": years}, 100, 100)
    chosen = torch.zeros(50)
    chosen[40:] = 1
    assert torch.equal(steps @ chosen, (years >= 1990).float())


@given(
    st.lists(st.one_of(st.floats(-1e300, 1e300), st.just(float("nan"))), min_size=1, max_size=300),
    st.data(),
)
def test_any_numbers_are_on_one_step_or_none(values: list[float], data: st.DataObject) -> None:
    described = data.draw(st.integers(1, len(values)))
    numbers = column(*values)
    found = steps_of({"x": numbers}, len(values), described)
    known = ~numbers.isnan()
    assert found.sum(1)[~known].eq(0).all()
    assert found.shape[1] == 0 or found.sum(1)[known].eq(1).all()
    order = numbers[known].argsort()
    assert found.shape[1] == 0 or bool((found[known].argmax(1)[order].diff() >= 0).all())
    assert torch.equal(found[:described], steps_of({"x": numbers[:described]}, described, described))


def test_popularity_has_few_steps() -> None:
    visits = torch.arange(100, dtype=torch.float64)
    assert steps_of({"popularity": visits, "price": visits}, 100, 100).shape == (100, 16 + 100)
