"""CSV files as people export them, and what is said of those that cannot be read."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.csv_files import read_csv
from cramer_peft.recsys.data.table import Table

pytest.importorskip("pandas")


def write(path: Path, content: str | bytes, name: str = "x.csv") -> Path:
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path / name


def rows(table: Table) -> list[list[str]]:
    return [list(table.names), *map(list, zip(*(table[name] for name in table.names), strict=True))]


@pytest.mark.parametrize(
    ("content", "sep"),
    [
        ("a,b\n1,x y\n2,\n", "','"),
        ("a;b\r\n1;x y\r\n2;\r\n", "';'"),
        ("a\tb\r1\tx y\r2\t\r", "tabs"),
        ("a|b\n1|x y\n\n2|\n", "'|'"),
        (b"\xef\xbb\xbfa,b\n1,x y\n2,\n", "','"),
        ("a,b\n1,x y\n2,\n".encode("utf-16"), "','"),
    ],
)
def test_separators_line_ends_and_marks(tmp_path: Path, content: str | bytes, sep: str) -> None:
    table = read_csv(write(tmp_path, content))
    assert rows(table) == [["a", "b"], ["1", "x y"], ["2", ""]]
    assert table.notes == f"cut at {sep}"


def test_a_compressed_file_and_a_named_separator(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"a,b;c\n1,2;3\n"), "x.csv.gz")
    assert rows(read_csv(path, sep=";")) == [["a,b", "c"], ["1,2", "3"]]
    tabs = write(tmp_path, "a,b\tc\n1\t2\n")
    assert [read_csv(tabs, sep=sep).names for sep in ("\\t", "tab", "\t")] == [("a,b", "c")] * 3


def test_rows_keep_their_lines(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, 'a,b\n1,"two\nlines"\n\n,,\n3,"a ""b"""\n'.replace("\n,,\n", "\n,\n")))
    assert rows(table)[1:] == [["1", "two\nlines"], ["3", 'a "b"']]
    assert table.at(1) == f"{tmp_path / 'x.csv'}, line 6"


def test_names_that_are_not_there(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, ",a, b \n0,1,2\n")).names == ("column 1", "a", "b")  # as pandas writes its index


def test_quotes_that_quote_nothing_are_read_in_files_cut_at_tabs(tmp_path: Path) -> None:
    assert rows(read_csv(write(tmp_path, 'a\tb\n1\t"5" tall\n'))) == [["a", "b"], ["1", '"5" tall']]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\n", "the file is empty"),
        (b"a,b,a\n1,2,3\n", "line 1: the columns 'a' are there more than once"),
        (b"a,b\n1,2\n1,2,3\n", r"line 3: found 3 cells cut at ',', expected 2 .*first is '1'.*--sep"),
        (b'a,b\n1,"5" tall\n', r"line 2: ',' expected after '\"'"),
        (b'a,b\n1,2\n3,"open\n4,5\n', "line 3: unexpected end of data"),
        (b"a,b\n1,2\n1,\xe9t\xe9\n", r"line 3: byte 0xe9 is not UTF-8.*--encoding.*cp1252"),
        (b"PK\x03\x04\x00\x00", "not a text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(write(tmp_path, content))


def test_options_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,caf\xe9\n".encode("cp1252"))
    assert rows(read_csv(path, encoding="cp1252"))[1] == ["1", "café"]
    for sep in ("::", "", '"', "\n"):
        with pytest.raises(DataError, match=r"sep: found .*, expected one character"):
            read_csv(path, sep=sep, encoding="cp1252")
    with pytest.raises(DataError, match="encoding: found 'klingon'"):
        read_csv(path, encoding="klingon")
    for content in (b"no", gzip.compress(b"a,b\n1,2\n" * 99)[:20]):
        with pytest.raises(DataError, match="not a whole gzip file"):
            read_csv(write(tmp_path, content, "x.csv.gz"))


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)


@given(content=st.lists(st.tuples(cells, cells), min_size=1, max_size=5), sep=st.sampled_from(",;\t|"))
def test_what_pythons_writer_writes_is_read(
    content: list[tuple[str, str]], sep: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=sep, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *content])
    table = read_csv(write(tmp_path_factory.mktemp("csv"), file.getvalue()))
    assert rows(table)[1:] == [list(row) for row in content if any(row)]
