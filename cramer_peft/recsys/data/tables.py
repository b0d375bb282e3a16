"""Tables as people have them: data frames, CSV, Parquet, Hugging Face data sets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cramer_peft.errors import DataError, require
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.csv_files import read_csv
from cramer_peft.recsys.data.table import Table, listed, refuse_twice
from cramer_peft.recsys.reading import as_path

_EXPECTED = (
    "expected a data frame of pandas or polars, a Hugging Face Dataset (one split), an Arrow table, or the path of a "
    "CSV, TSV (also .gz) or Parquet file"
)
_LINE_ENDS = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True, eq=False)
class Tables:
    """Interactions and items in tables, and the columns that serve as user, item and so on.

    A table is a data frame of pandas or polars, a Hugging Face ``Dataset``, an Arrow table, or the path of a CSV, TSV
    (also .gz), Parquet or atomic file. A column that is not named is found by its name.

    Attributes:
        interactions: One row for each visit.
        items: One row for each item; None: its columns are those of the interactions that are the same in all visits
            of an item, with the title and the attributes.
        user: The column of the interactions with the user.
        item: The one with the item, in both tables.
        time: The one with the time, numbers or dates.
        rating: The one with the rating, which only ``min_rating`` looks at.
        request: The one with what the user asked for when they met the item.
        title: The column of the items with the title.
        attributes: The one with the attributes: texts, lists, or texts with a separator.
        sep: Separator of the columns in CSV files; None: found in the first line.
        encoding: Of CSV files; None: UTF-8, or UTF-16 if the file says so.
    """

    interactions: Any
    items: Any = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    request: str | None = None
    title: str | None = None
    attributes: str | None = None
    sep: str | None = None
    encoding: str | None = None

    def columns(self, others: Columns) -> Columns:
        """Return the columns named here, and for those that are not, the others."""
        named = {
            f"{name}_column": getattr(self, name) for name in ("user", "item", "time", "rating", "request", "title")
        }
        named |= {"attribute_column": self.attributes, "sep": self.sep, "encoding": self.encoding}
        return replace(others, **{field: value for field, value in named.items() if value is not None})

    def read(self, columns: Columns) -> tuple[Table, Table | None]:
        """Return the interactions and the items as tables of text; the CSV files are read as ``columns`` says."""
        interactions = read_table(self.interactions, "interactions", columns)
        return interactions, None if self.items is None else read_table(self.items, "items", columns)


def data_name(data: str | os.PathLike[str] | Tables) -> str:
    """Return a name of a data set that tells no path: of its folder or files, or what holds it."""
    if not isinstance(data, Tables):
        return as_path(data).name
    given = [table for table in (data.interactions, data.items) if table is not None]
    return " and ".join(dict.fromkeys(Path(one).name if _is_path(one) else "a data frame" for one in given))


def read_table(given: Any, name: str, columns: Columns) -> Table:
    """Return a table of text from a data frame or a file.

    Args:
        given: What :class:`Tables` takes.
        name: The name of a data frame, for messages.
        columns: The separator and the encoding of CSV files.

    Raises:
        DataError: If it is no table, has no rows, or two columns have one name.
        MissingExtraError: If it is a Parquet file and pyarrow is not installed.
    """
    table = _from_file(as_path(given), columns) if _is_path(given) else _from_frame(given, name)
    if not len(table):
        raise DataError(
            f"{table.source}: no rows; columns there: {listed(table.names, 50)}. Expected at least one row."
        )
    return table


def _is_path(given: Any) -> bool:
    return isinstance(given, str | os.PathLike)


def _from_file(path: Path, columns: Columns) -> Table:
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in (".csv", ".tsv", ".tab", ".txt"):
        table = read_csv(path, columns.sep, columns.encoding)
        cells = table.read
        return replace(table, read=lambda name: [cell_text(cell) for cell in cells(name)])
    if kind in (".inter", ".item"):
        return read_atomic(path)
    if kind not in (".parquet", ".pq"):
        raise DataError(
            f"{path}: found a file {kind or 'without a suffix'}, expected .csv, .tsv, .txt (also .gz) or .parquet."
        )
    parquet = require("pyarrow.parquet", extra="tables")
    try:
        return _from_frame(parquet.read_table(path), str(path))
    except (OSError, ValueError) as error:  # pyarrow's own are both
        raise DataError(f"{path}: not a Parquet file that can be read ({error}). Write it again.") from error


def _from_frame(given: Any, source: str) -> Table:
    """Return a table of a data frame; its columns are read when they are asked for."""
    pd = require("pandas", extra="demo")
    labels: Sequence[object] | None = None
    if hasattr(given, "collect_schema") and hasattr(given, "collect"):
        given = given.collect()  # a lazy frame of polars
    read: Callable[[Any], Sequence[Any]]
    if isinstance(given, pd.DataFrame):
        labels = given.index.tolist()
        if any(level is not None and level not in given.columns for level in given.index.names):
            given = given.reset_index()
        found, read = list(given.columns), lambda column: given.iloc[:, found.index(column)].tolist()
    elif hasattr(given, "to_pydict"):  # Arrow
        found, read = list(given.column_names), lambda column: given.column(column).to_pylist()
    elif hasattr(given, "get_columns"):  # polars
        found, read = list(given.columns), lambda column: given[column].to_list()
    elif hasattr(given, "with_format") and hasattr(given, "num_rows") and not isinstance(given, Mapping):
        plain = given.with_format(None)  # a Dataset may give tensors
        found, read = list(plain.column_names), lambda column: list(plain[column])
    elif hasattr(given, "to_pandas"):
        return _from_frame(given.to_pandas(), source)
    else:
        splits = f" of {listed(list(map(str, given)))}" if isinstance(given, Mapping) else ""
        raise DataError(f"{source}: found {type(given).__name__}{splits}, {_EXPECTED}.")
    names = [str(column) for column in found]
    refuse_twice(source, names)
    known = dict(zip(names, found, strict=True))
    rows = range(len(given)) if labels is None else labels
    return Table(source, tuple(names), lambda column: list(map(cell_text, read(known[column]))), rows, "row")


def cell_text(cell: Any) -> str:
    """Return a cell as text: "" where nothing is known, a list as JSON, line ends as spaces."""
    if isinstance(cell, str):
        return _LINE_ENDS.sub(" ", cell) if "\n" in cell or "\r" in cell else cell
    if isinstance(cell, int | datetime):
        return "" if cell != cell else str(cell)  # NaT is a datetime
    if hasattr(cell, "tolist"):  # of numpy
        return cell_text(cell.tolist())
    if isinstance(cell, list | tuple | AbstractSet | Mapping):
        plain = sorted(cell, key=str) if isinstance(cell, AbstractSet) else cell
        plain = plain if isinstance(plain, Mapping) else [entry for entry in plain if entry is not None]
        return json.dumps(plain, ensure_ascii=False, default=cell_text)
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    if cell is None or type(cell).__name__ == "NAType" or cell != cell:  # NaN
        return ""
    return str(cell)
