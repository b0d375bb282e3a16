from __future__ import annotations

import pytest
import torch
from benchmark.measures.significance import adjusted, paired_p
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    torch.manual_seed(0)
    first = torch.rand(60)
    assert paired_p(first + 0.1, first) == pytest.approx(1e-4)
    assert paired_p(first, first) == 1.0
    assert paired_p(first, torch.rand(60)) > 0.05
    assert paired_p(first, first + 0.1) == paired_p(first + 0.1, first)


def test_five_users_can_never_be_surer_than_one_in_sixteen() -> None:
    """All 32 flips of five equal differences: two of them are as far from zero."""
    assert paired_p(torch.ones(5), torch.zeros(5)) == pytest.approx(2 / 32, abs=0.01)


def test_the_correction_is_that_of_benjamini_and_hochberg() -> None:
    assert adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert adjusted([]) == []


@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=30))
def test_corrected_values_keep_the_order_and_are_never_smaller(values: list[float]) -> None:
    found = adjusted(values)
    assert all(before <= after * (1 + 1e-12) and after <= 1 for before, after in zip(values, found, strict=True))
    pairs = sorted(zip(values, found, strict=True))
    assert [after for _, after in pairs] == sorted(after for _, after in pairs)


def test_what_cannot_be_tested_is_told() -> None:
    with pytest.raises(DataError, match="expected"):
        paired_p(torch.zeros(2), torch.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        paired_p(torch.tensor([float("nan")]), torch.zeros(1))
