import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.recsys.data.cell_numbers import read_numbers


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("5", 5),
        ("-5,5", -5.5),
        (".5", 0.5),
        ("5.", 5),
        ("2.5e-3", 0.0025),
        ("$5", 5),
        ("US$ 5.99", 5.99),
        ("5,99 €", 5.99),
        ("12,00 EUR", 12),
        ("EUR12,5", 12.5),
        ("ab 89,90", 89.9),
        ("from 20 GBP", 20),
        ("89,-", 89),
        ("CHF 1'299.-", 1299),
        ("89,-- €", 89),
        ("1.299,00 €", 1299),
        ("1,299.00", 1299),
        ("1.234.567", 1234567),
        ("kr 1 299", 1299),
        ("1 299,50 kr.", 1299.5),
        ("1\u00a0299,5", 1299.5),
        ("0,125", 0.125),
        ("1299,125", 1299.125),
    ],
)
def test_one_cell(cell: str, number: float) -> None:
    assert read_numbers([cell]) == ([number], None)


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "k.A.",
        "auf Anfrage",
        "10 200",
        "kraft 5",
        "31.01.2024",
        "1.2.3",
        "1,2,3",
        "1.2,5",
        "12..5",
        "1e999",
        "5 m",
        "5-6",
    ],
)
def test_what_is_no_number(cell: str) -> None:
    (value,), unclear = read_numbers([cell])
    assert math.isnan(value)
    assert unclear is None


@pytest.mark.parametrize(
    ("cells", "numbers", "unclear"),
    [
        (["1.299", "5,99"], [1299, 5.99], None),
        (["1.299", "5.99"], [1.299, 5.99], None),
        (["1,299", "5.99"], [1299, 5.99], None),
        (["1,299", "5,9"], [1.299, 5.9], None),
        (["89", "1,299"], [89, 1299], 1),
        (["89", "1.299", "2.499"], [89, 1.299, 2.499], 1),
        (["1.299", "5.9", "5,9"], [None, 5.9, 5.9], None),
    ],
)
def test_the_whole_column_decides(cells: list[str], numbers: list[float | None], unclear: int | None) -> None:
    found, place = read_numbers(cells)
    assert [None if math.isnan(value) else value for value in found] == numbers
    assert place == unclear


@given(st.lists(st.floats(0.01, 1e7).map(lambda value: round(value, 2)), min_size=1))
def test_both_ways_to_write_thousands(values: list[float]) -> None:
    english = [f"{value:,.2f}" for value in values]
    assert read_numbers(english)[0] == values
    assert read_numbers([text.translate(str.maketrans(",.", ".,")) + " €" for text in english])[0] == values


@given(st.lists(st.text()))
def test_any_cells(cells: list[str]) -> None:
    assert not any(map(math.isinf, read_numbers(cells)[0]))
