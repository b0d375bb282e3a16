"""CSV and TSV files, also compressed by gzip, as tables of text."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from pathlib import Path
from typing import Literal

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.separators import in_words
from cramer_peft.recsys.data.table import Table, refuse_twice
from cramer_peft.recsys.reading import read_file

MAX_CSV_BYTES = 4 * 2**30
_SEPARATORS = (",", ";", "\t", "|")
_WRITTEN = {"\\t": "\t", "tab": "\t"}  # as people write it in a shell


def read_csv(path: Path, sep: str | None = None, encoding: str | None = None) -> Table:
    """Read a file whose first line names its columns; cells with separators or line ends stand in double quotes.

    Args:
        path: The file; with the suffix .gz it is unpacked.
        sep: The separator, one character; None: of "," ";" tab and "|" the one that cuts the first line most often.
        encoding: None: UTF-8, or UTF-16 if the file begins with its mark.

    Raises:
        DataError: If the file cannot be read, or a row has more or fewer cells than the first line.
    """
    text = _decoded(path, _content(path), encoding)
    found = _separator(path, text, sep)
    try:
        lines, rows = _rows(path, text, found, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        if found != "\t":
            raise DataError(_problem(path, error)) from error
        try:  # a file cut by tabs often has quotes that quote nothing
            lines, rows = _rows(path, text, found, csv.QUOTE_NONE)
        except csv.Error as second:
            raise DataError(_problem(path, second)) from second
    names = _names(path, rows[0])
    _check_lengths(path, lines, rows, found)
    places = {name: place for place, name in enumerate(names)}

    def read(name: str) -> list[str]:
        return [row[places[name]] for row in rows[1:]]

    return Table(str(path), tuple(names), read, lines[1:], notes=f"cut at {in_words(found)}")


def _content(path: Path) -> bytes:
    data = read_file(path, "a CSV file", MAX_CSV_BYTES)
    if path.suffix.lower() == ".gz":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_CSV_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error}). Compress it again.") from error
        if len(data) > MAX_CSV_BYTES:
            raise DataError(f"{path}: unpacked it has more than {MAX_CSV_BYTES} bytes. Give parts of it, or Parquet.")
    return data


def _decoded(path: Path, data: bytes, encoding: str | None) -> str:
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    chosen = encoding or ("utf-16" if marked else "utf-8-sig")
    try:
        text = data.decode(chosen)
    except LookupError as error:
        raise DataError(
            f"encoding: found {encoding!r}, which Python does not know. Such as utf-8 or cp1252."
        ) from error
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{data[start]:02x} is not {encoding or 'UTF-8'}. Name the encoding "
            "(--encoding, Tables(encoding=…)), such as cp1252 for files of Excel, or save the file as UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty. Expected a first line with the names of the columns.")
    if "\0" in text[:1000]:
        raise DataError(
            f"{path}: not a text, expected a CSV file. Is it UTF-16 without a mark? Name the encoding then."
        )
    return text.removeprefix("\ufeff")


def _separator(path: Path, text: str, given: str | None) -> str:
    if given is not None:
        given = _WRITTEN.get(given, given)
        if len(given) != 1 or given in '\r\n"':
            raise DataError(f"sep: found {given!r}, expected one character, such as ',' or ';', or tab.")
        return given
    first = text.lstrip().splitlines()[0]
    cuts = {sep: len(next(csv.reader([first], delimiter=sep))) for sep in _SEPARATORS}
    return max(cuts, key=lambda sep: cuts[sep])


def _rows(path: Path, text: str, sep: str, quoting: Literal[0, 3]) -> tuple[list[int], list[list[str]]]:
    """Return the line that each row begins at, and its cells; the first row is that of the names."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep, quoting=quoting, strict=True)
    lines, rows, line = [], [], 1
    try:
        for row in reader:
            if any(row):
                lines.append(line)
                rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from error
    return lines, rows


def _problem(path: Path, error: csv.Error) -> str:
    where, _, what = str(error).partition(": ")
    return (
        f"{path}, {where}: {what}. A cell with the separator, a quote or a line end stands in double quotes, and a "
        'quote in it is doubled: "5"" tall". Correct the line, or name another separator (--sep).'
    )


def _names(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() or f"column {number}" for number, name in enumerate(row, start=1)]
    refuse_twice(f"{path}, line 1", names)
    return names


def _check_lengths(path: Path, lines: list[int], rows: list[list[str]], sep: str) -> None:
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}, line {line}: found {len(row)} cells cut at {in_words(sep)}, expected {len(rows[0])} as in "
                f"the first line; the first is {row[0]!r:.60}. A cell with the separator in it stands in double "
                "quotes. Or name another separator (--sep)."
            )
