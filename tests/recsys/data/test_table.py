import pytest

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.table import Table, counted, together

pytest.importorskip("pandas")


def table(*cells: str, word: str = "row", **kinds: str) -> Table:
    return Table("visits", ("sku",), {"sku": cells}.__getitem__, [f"r{n}" for n in range(len(cells))], word, kinds)


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (("17.0", "3.0"), ["17", "3"]),
        (("17.0", "3"), ["17", "3"]),
        (("1.7e+1", "-3.0"), ["17", "-3"]),
        (("007", " 7 "), ["007", "7"]),
        (("1.0", "b"), ["1.0", "b"]),
        (("1.5", "2.5"), ["1.5", "2.5"]),
        (("1e5", "a0"), ["1e5", "a0"]),
        (("9007199254740993", "1"), ["9007199254740993", "1"]),
    ],
)
def test_ids_of_whole_numbers_stay_whole(cells: tuple[str, ...], ids: list[str]) -> None:
    assert table(*cells).ids("sku").tolist() == ids


def test_ids_of_atomic_files_stay_as_they_are_written() -> None:
    assert table("17.0", " 3", sku="token").ids("sku").tolist() == ["17.0", " 3"]


@pytest.mark.parametrize("cell", ["9007199254740993.0", "1.152921504606847e+18"])
def test_rounded_ids_are_refused(cell: str) -> None:
    with pytest.raises(DataError, match=r"visits, row r1: column 'sku' holds .* too large to be exact"):
        table("1.0", cell).ids("sku")


def test_blank_ids_are_refused() -> None:
    with pytest.raises(DataError, match=r"visits, row r1: column 'sku' is blank \(2 such rows\)"):
        table("17.0", "", " ").ids("sku")


def test_what_stands_for_a_blank_is_no_id() -> None:
    with pytest.raises(DataError, match=r"row r1: column 'sku' is blank \(2 such rows; 'NaN' counts as blank\)"):
        table("17", "NaN", "").ids("sku")
    assert table("17", "NaN", sku="token").ids("sku").tolist() == ["17", "NaN"]  # as it is written


def test_problems_of_several_readings_come_together() -> None:
    def bad(text: str) -> None:
        raise DataError(text)

    assert together(lambda: 1, lambda: "b") == [1, "b"]
    with pytest.raises(DataError, match=r"\Afirst\nsecond\Z"):
        together(lambda: bad("first"), lambda: 1, lambda: bad("second"))


@pytest.mark.parametrize(("number", "text"), [(0, "0 values"), (1, "1 value"), (1234, "1,234 values")])
def test_counted(number: int, text: str) -> None:
    assert counted(number, "value") == text


def test_numbers() -> None:
    assert table("1", " 4,5 ", "-2e3").numbers("sku").tolist() == [1, 4.5, -2000]
    with pytest.raises(DataError, match=r"visits, row r1: column 'sku' holds '1,000', which is not a number"):
        table("1", "1,000").numbers("sku")


def test_some_rows_keep_their_places() -> None:
    some = table("a", "b", "c").taken([2, 0], ["sku"])
    assert (some["sku"].tolist(), some.at(0), len(some)) == (["c", "a"], "visits, row r2", 2)
