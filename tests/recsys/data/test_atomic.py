import math
from pathlib import Path

import pytest

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.atomic import read_atomic

pytest.importorskip("pandas")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_types_and_keeps_tokens_as_text(tmp_path: Path) -> None:
    header = "i:token\ts:token_seq\tf:float\tv:float_seq\tt:str\n"
    table = read_atomic(write(tmp_path / "x.item", header + "007\ta b\t1.5\t1 2\tp|q r\n"))
    assert table.names == ("i", "s", "f", "v", "t")
    assert [table[name].tolist() for name in table.names] == [["007"], ["a b"], ["1.5"], ["1 2"], ["p|q r"]]
    assert table.kinds["v"] == "float_seq"
    assert table.numbers("f").tolist() == [1.5]


def test_crlf_bom_and_blank_lines_at_the_end(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfi:token\tf:float\r\nx\t1\r\ny\t\r\n\r\n"
    table = read_atomic(write(tmp_path / "x.item", data))
    assert table.names == ("i", "f")
    assert table["i"].tolist() == ["x", "y"]
    assert table.numbers("f")[0] == 1.0
    assert math.isnan(table.numbers("f")[1])


def test_quotes_and_unusual_line_separators_are_text(tmp_path: Path) -> None:
    titles = ['"open', "a\u2028b", "c\x0bd", "NA", "'q'"]
    body = "".join(f"{title}\t1\n" for title in titles)
    assert read_atomic(write(tmp_path / "x.item", "t:token\tf:float\n" + body))["t"].tolist() == titles


def test_header_without_rows(tmp_path: Path) -> None:
    table = read_atomic(write(tmp_path / "x.item", "t:token\tf:float"))
    assert len(table) == 0
    assert table.numbers("f").dtype == "float64"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"user_id\titem_id\n1\t2\n", r"line 1: field 'user_id'.*name:type"),
        (b":token\n1\n", "name:type"),
        (b"a:token\ta:float\n1\t2\n", "'a' is there twice"),
        (b"a:token\tb:token\nx\ty\nx\n", "line 3: found 1 .*expected 2"),
        (b"a:token\tb:token\nx\ty\tz\n", "line 2: found 3 .*expected 2"),
        (b"a:token\tb:token\n\nx\ty\n", "line 2: found 1 "),
        (b"a:token\nx\n\xe9t\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "bad.inter", content)
    with pytest.raises(DataError, match=message) as caught:
        read_atomic(path)
    assert "bad.inter" in str(caught.value)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an ordinary file"):
        read_atomic(tmp_path)
    with pytest.raises(DataError, match=r"absent\.inter does not exist"):
        read_atomic(tmp_path / "absent.inter")
