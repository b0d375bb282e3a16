import pytest

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.dates import iso_dates, year_of
from cramer_peft.recsys.data.table import Table

pytest.importorskip("pandas")


def read(*cells: str) -> list[str]:
    table = Table("x.csv", ("day",), {"day": cells}.__getitem__, range(2, len(cells) + 2))
    found: list[str] = iso_dates(table, table["day"]).tolist()
    return found


@pytest.mark.parametrize(
    ("cell", "iso"),
    [
        ("2024-01-31", "2024-01-31"),
        ("2024/1/5 7:05", "2024-01-05T07:05"),
        ("2024-01-31 12:00:00.5 UTC", "2024-01-31T12:00:00.5Z"),
        ("2024-01-31T12:00:00+0100", "2024-01-31T12:00:00+0100"),
        ("31.01.2024, 23:59", "2024-01-31T23:59"),
        ("05.04.2024", "2024-04-05"),
        ("Jan 5, 2024", "2024-01-05"),
        ("5 January 2024 12:30 AM", "2024-01-05T00:30"),
        ("Wed, 31 Jan 2024 10:00:00 GMT", "2024-01-31T10:00:00Z"),
        ("03-Feb-2021", "2021-02-03"),
        ("5 Foo 2024", "5 Foo 2024"),
        ("soon", "soon"),
        ("1700000000", "1700000000"),
        ("", ""),
    ],
)
def test_common_formats(cell: str, iso: str) -> None:
    assert read(cell) == [iso]


def test_the_order_of_day_and_month_is_that_of_the_whole_column() -> None:
    assert read("03/04/2024", "13/04/2024") == ["2024-04-03", "2024-04-13"]
    assert read("03/04/2024", "03/14/2024 1:00 PM", "") == ["2024-03-04", "2024-03-14T13:00", ""]
    with pytest.raises(DataError, match=r"x.csv, line 3: column 'day' holds '03/04/2024': the day can be"):
        read("", "03/04/2024")
    with pytest.raises(DataError, match=r"line 3: column 'day' holds '01/13/2024', whose first number is the month"):
        read("13/01/2024", "01/13/2024")


def test_years() -> None:
    assert [year_of(cell) for cell in ("03/04/2021", "2020-01-01T00:00", "May 1, 1999", "1999", "x")] == [
        2021,
        2020,
        1999,
        None,
        None,
    ]
