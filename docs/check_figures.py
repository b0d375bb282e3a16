"""Keep the figures of README.md and docs/ equal to those that the commands wrote.

A file of ``docs/figures/`` holds the figures of one command, the command itself and the commit:

    {"command": "python -m benchmark --matrix full --output full", "folder": "examples", "commit": "07ff80f",
     "rows": {"ours": {"NDCG@10": [0.251, 0.233, 0.270], "parameters": 130003}}}

A figure is a number, or a value with the ends of its interval. Pages show it in a table between two comments, or in
a sentence with a comment behind the figure (a space before it is allowed):

    <!-- figures movielens-100k: NDCG@10 | parameters; ours | frozen -->
    <!-- end of figures -->
    it reaches .251 ± .018<!-- movielens-100k: ours | NDCG@10 -->

After ``;`` stand the rows of a table; without them it has all. Commands:

    python docs/check_figures.py                       # what does not agree; exit status 1 if anything
    python docs/check_figures.py --write               # write the tables anew
    python docs/check_figures.py --take results.json docs/figures/steam-au.json --commit 07ff80f
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
COLUMNS = {  # the name in a table: track and metric in the benchmark's results.json
    "NDCG@10": ("truthful", "ndcg"),
    "HR@10": ("truthful", "hr"),
    "× frozen": ("truthful", "ndcg_ratio"),
    "gain": ("for", "normalised_gain"),
    "retention": ("for", "retention"),
    "mixed gain": ("mixed", "normalised_gain"),
    "against": ("against", "violation_ratio"),
    "favourite": ("against favourite", "ratio"),
    "nothing asked": ("empty", "overlap"),
    "unseen attributes": ("unseen attributes for", "normalised_gain"),
    "unseen users, × frozen": ("unseen users truthful", "ndcg_ratio"),
}
STUDY_COLUMNS = {  # of studies of own requests: the track whose NDCG@10 it is
    "own requests": "own requests",
    "shuffled": "shuffled requests",
    "one mean request": "mean request",
    "no request": "no request",
    "own, of 100": "own requests, 100 negatives",
    "none, of 100": "no request, 100 negatives",
}
DIFFERENCES = (
    "own - shuffled requests",
    "own - mean request",
    "own - no request",
)
THREE_DIGITS = ("NDCG@10", "HR@10", *STUDY_COLUMNS, *DIFFERENCES)
TABLE = re.compile(
    r"(<!-- figures ([\w.-]+): ([^;>]+?)(?:; ([^>]+?))? -->\n)(.*?)(<!-- end of figures -->)",
    re.DOTALL,
)
MARK = re.compile(
    r"(-?[\d,]*\.?\d+)(?: ± ([\d.]+))? ?<!-- ([\w.-]+): ([^|>]+?) \| ([^|>]+?) -->"
)


def pages() -> list[Path]:
    """Return README.md and every page."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load(name: str) -> dict[str, Any]:
    """Return a file of figures.

    Raises:
        ValueError: If there is none of this name, or it does not name its command and commit.
    """
    path = FIGURES / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"docs/figures/{name}.json is missing")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = {"command", "folder", "commit", "rows"} - set(found)
    if missing:
        raise ValueError(
            f"docs/figures/{name}.json has no {', '.join(sorted(missing))}"
        )
    return found


def number(value: float, digits: int) -> str:
    """Return a number as pages write it: ``.251``, ``2.4``, ``130,003``."""
    if isinstance(value, int):
        return f"{value:,}"
    exact = Decimal(repr(round(value, 9)))
    rounded = exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return re.sub(r"^(-?)0\.", r"\1.", f"{rounded:f}")


def cell(entry: Any, column: str) -> str:
    """Return a figure for a table, with half the width of its interval; empty text if it was not measured."""
    if entry is None:
        return ""
    digits = 3 if column in THREE_DIGITS else 2
    value, low, high = entry if isinstance(entry, list) else (entry, None, None)
    if low is None or low == high:  # a reference, such as the frozen model's 1
        return number(int(value) if value == int(value) else value, digits)
    half = number((high - low) / 2, digits)
    return number(value, digits) + (f" ± {half}" if float(half) else "")


def table(name: str, columns: str, rows: str | None) -> str:
    """Return the Markdown of a table."""
    found = load(name)["rows"]
    kept = [column.strip() for column in columns.split(" | ")]
    named = [
        name
        for name, row in found.items()
        if any(column in row for column in kept)
    ]
    chosen = (
        named if rows is None else [row.strip() for row in rows.split(" | ")]
    )
    unknown = [row for row in chosen if row not in found]
    unknown += [
        column
        for column in kept
        if not any(column in row for row in found.values())
    ]
    if unknown:
        raise ValueError(
            f"docs/figures/{name}.json has no {', '.join(unknown)}"
        )
    lines = [["", *kept], ["---", *["--:"] * len(kept)]]
    lines += [
        [row, *(cell(found[row].get(column), column) for column in kept)]
        for row in chosen
    ]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def written(text: str) -> str:
    """Return a page with its tables written anew."""
    return TABLE.sub(
        lambda match: (
            f"{match[1]}{table(match[2], match[3], match[4])}{match[6]}"
        ),
        text,
    )


def findings(text: str) -> Iterator[str]:
    """Yield what does not agree in a page."""
    for match in TABLE.finditer(text):
        try:
            if table(match[2], match[3], match[4]) != match[5]:
                yield f"the table of {match[2]} ({match[3]}) is not that of its file: run --write"
        except ValueError as error:
            yield str(error)
    for shown, half, name, row, column in MARK.findall(text):
        yield from _disagreement(shown, half, name, row, column)


def _disagreement(
    shown: str, half: str, name: str, row: str, column: str
) -> Iterator[str]:
    try:
        entry = load(name)["rows"][row][column]
    except (ValueError, KeyError) as error:
        yield f"{shown}: docs/figures/{name}.json has no {row}, {column} ({error})"
        return
    value, low, high = (
        entry if isinstance(entry, list) else (entry, entry, entry)
    )
    for text, expected in ((shown, value), (half, (high - low) / 2)):
        digits = len(text.partition(".")[2])
        if text and text != number(expected, digits):
            yield f"{text}: docs/figures/{name}.json has {number(expected, max(digits, 3))} for {row}, {column}"


def take(
    results: Mapping[str, Any], commit: str, command: str = ""
) -> dict[str, Any]:
    """Return a file of figures made of what ``python -m benchmark`` wrote, or ``python -m benchmark.speed``."""
    if "results" in results:
        rows, written = (
            _speed_rows(results["results"]),
            "python -m benchmark.speed",
        )
    elif results.get("studies"):
        rows, written = _study_rows(results["studies"]), results["command"]
    else:
        rows, written = _track_rows(results["groups"]), results["command"]
    return {
        "command": command or written,
        "folder": "examples",
        "commit": commit,
        "rows": rows,
    }


def _speed_rows(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ratios of times and of peaks of memory."""
    return {
        f"{found['model']}, {found['batch']} rows, {row['name']}": {
            "ratio": _entry(row),
            "peak": row.get("peak_ratio"),
        }
        for found in results
        for row in found["rows"]
    }


def _track_rows(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of each method on one data set."""
    places = {
        (group["data"], group["protocol"], group["backbone"])
        for group in groups
    }
    if len(places) != 1:
        raise ValueError(
            f"expected one data set, split and backbone, found {sorted(places)}: take them apart"
        )
    found: dict[str, Any] = {}
    for group in groups:
        tracks = group["tracks"]
        entries = {
            name: tracks.get(track, {}).get(metric)
            for name, (track, metric) in COLUMNS.items()
        }
        row = {
            name: _entry(entry)
            for name, entry in entries.items()
            if entry is not None
        }
        found[group["variant"] or group["method"]] = {
            **row,
            "parameters": group["trainable"],
            "seeds": len(group["seeds"]),
        }
    return found


def _study_rows(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return NDCG@10 by method of one study of own requests, and what own requests add."""
    if len(studies) != 1:
        raise ValueError(
            f"expected one study, found {len(studies)}: take them apart"
        )
    (study,) = studies
    rows: dict[str, Any] = {}
    for method, tracks in study["figures"].items():
        row = {
            name: _entry(tracks[track]["ndcg@10"])
            for name, track in STUDY_COLUMNS.items()
            if track in tracks
        }
        for name in DIFFERENCES:
            found = study["differences"].get(f"{method}: {name}")
            if found is not None:
                row[name] = _entry(found)
        rows[method] = row
    return rows


def _entry(entry: Mapping[str, Any]) -> list[float]:
    """Return a value and its interval: of the benchmark, or a ratio with its quartiles."""
    return [
        round(entry[name], 4)
        for name in ("value" if "value" in entry else "ratio", "low", "high")
    ]


def main() -> int:
    """Run the command; return the number of findings."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--write", action="store_true", help="write the tables anew"
    )
    parser.add_argument(
        "--take",
        nargs=2,
        metavar=("RESULTS", "FILE"),
        type=Path,
        help="make a file of figures",
    )
    parser.add_argument(
        "--command",
        default="",
        help="the command that wrote them, if it is not in the file",
    )
    parser.add_argument(
        "--commit",
        default="",
        help="the commit that --take's results were measured at",
    )
    options = parser.parse_args()
    if options.take:
        source, target = options.take
        taken = take(
            json.loads(source.read_text(encoding="utf-8")),
            options.commit,
            options.command,
        )
        target.write_text(
            json.dumps(taken, indent=1, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        return 0
    count = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if options.write and (new := written(text)) != text:
            page.write_text(new, encoding="utf-8")
            text = new
        for finding in findings(text):
            print(f"{page.relative_to(ROOT)}: {finding}")
            count += 1
    return count


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
