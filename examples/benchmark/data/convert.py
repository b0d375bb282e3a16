"""Write the files that KuaiSAR, Amazon Reviews 2023 and ReDial are published as, as atomic files.

None of them is downloaded here, and their licences stay those of their authors.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmark.titles import split_year
from cramer_peft.errors import DataError
from cramer_peft.storage import write_bytes

CATEGORIES = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
_NOTHING = {"", "empty", "nan", "unknown", "none"}
_MENTION = re.compile(r"@(\d+)")
_UTTERANCES = 4  # of the seeker before a film is recommended
_LONGEST_FIELD = 2**28  # characters of a field of KuaiSAR's items


@dataclass(frozen=True)
class Interaction:
    """One line of an ``.inter`` file."""

    user: str
    item: str
    time: float
    request: str = ""
    rating: float | None = None


def convert_kuaisar(source: Path, target: Path, least: int = 5) -> Path:
    """Write KuaiSAR (a folder with ``rec_inter.csv``, ``src_inter.csv``, ``item_features.csv``) as atomic files.

    An interaction is a click in recommendation, without a request, or in search, with the keyword as its request.
    Words are published as numbers: ``[11, 20]`` becomes "w11 w20" in requests and titles alike. Categories are the
    English names of all levels.

    Args:
        source: The folder.
        target: Folder to write, whose last part names the files.
        least: Fewest interactions of each user and each item; those with fewer are left out, again and again.

    Raises:
        DataError: If a file or a field is missing, or nothing is left.
    """
    found = [
        Interaction(row["user_id"], row["item_id"], float(row["timestamp"]) / 1000)
        for row in _csv_rows(source / "rec_inter.csv", ("user_id", "item_id", "timestamp", "click"))
        if float(row["click"] or 0) > 0
    ]
    fields = ("user_id", "item_id", "search_session_timestamp", "keyword", "click_cnt")
    found += [
        Interaction(
            row["user_id"], row["item_id"], float(row["search_session_timestamp"]) / 1000, _words(row["keyword"])
        )
        for row in _csv_rows(source / "src_inter.csv", fields)
        if float(row["click_cnt"] or 0) > 0
    ]
    found = core(found, least)
    kept = {one.item for one in found}
    items = {}
    for row in _csv_rows(source / "item_features.csv", ("item_id", "caption", CATEGORIES[0])):
        if row["item_id"] in kept:
            names = [row.get(field) or "" for field in CATEGORIES]
            items[row["item_id"]] = {
                "title": _words(row["caption"]) or f"video {row['item_id']}",
                "categories": "|".join(dict.fromkeys(name for name in names if name.strip().lower() not in _NOTHING)),
            }
    return write_atomic(target, found, items)


def convert_amazon(reviews: Path, metadata: Path, target: Path, least: int = 5) -> Path:
    """Write a category of Amazon Reviews 2023 (``Beauty.jsonl.gz``, ``meta_Beauty.jsonl.gz``) as atomic files.

    Items are known by ``parent_asin``, as both files are joined. No request is stated there: a review is written after
    the purchase.

    Args:
        reviews: The file of reviews, plain or gzipped.
        metadata: The file of items, plain or gzipped.
        target: Folder to write, whose last part names the files.
        least: As for :func:`convert_kuaisar`.

    Raises:
        DataError: If a file cannot be read, a field is missing, or nothing is left.
    """
    fields = ("user_id", "parent_asin", "timestamp", "rating")
    found = [
        Interaction(row["user_id"], row["parent_asin"], float(row["timestamp"]) / 1000, "", float(row["rating"]))
        for row in _json_rows(reviews, fields)
    ]
    found = core(found, least)
    kept = {one.item for one in found}
    items = {
        row["parent_asin"]: {
            "title": row["title"] or row["parent_asin"],
            "categories": "|".join(map(str, row.get("categories") or [row.get("main_category") or ""])),
            "brand": row.get("store") or "",
            "description": " ".join(map(str, [*(row.get("features") or []), *(row.get("description") or [])])),
        }
        for row in _json_rows(metadata, ("parent_asin", "title"))
        if row["parent_asin"] in kept
    }
    return write_atomic(target, found, items)


def convert_redial(source: Iterable[Path], target: Path, least: int = 1) -> Path:
    """Write ReDial (``train_data.jsonl``, ``test_data.jsonl``) as atomic files: a sequence for each dialogue.

    An interaction is a film that the seeker says they liked, at its first mention. Where the other person brings it up,
    its request is what the seeker said before, at most four utterances, with titles in place of ``@123``. ReDial tells
    no genres: the column is empty, to be filled from other data.

    Args:
        source: The files.
        target: Folder to write, whose last part names the files.
        least: As for :func:`convert_kuaisar`.

    Raises:
        DataError: If a file cannot be read, a field is missing, or nothing is left.
    """
    found: list[Interaction] = []
    items: dict[str, dict[str, str]] = {}
    fields = ("conversationId", "messages", "movieMentions", "initiatorQuestions", "initiatorWorkerId")
    for path in source:
        for row in _json_rows(path, fields):
            titles = {movie: str(name) for movie, name in dict(row["movieMentions"] or {}).items() if name}
            for one in _dialogue(row, titles):
                found.append(one)
                title = titles[one.item]
                year = split_year(title)[1]
                items[one.item] = {"title": title, "release_year": "" if year is None else str(year), "genres": ""}
    return write_atomic(target, core(found, least), items)


def _dialogue(row: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[Interaction]:
    labels = dict(row["initiatorQuestions"] or {})
    seen: set[str] = set()
    said: list[str] = []
    for time, message in enumerate(row["messages"]):
        own = message["senderWorkerId"] == row["initiatorWorkerId"]
        request = "" if own else " ".join(said[-_UTTERANCES:])
        for movie in dict.fromkeys(_MENTION.findall(message["text"])):
            if movie in titles and movie not in seen and labels.get(movie, {}).get("liked") == 1:
                yield Interaction(str(row["conversationId"]), movie, time + len(seen) / 1000, request)
            seen.add(movie)
        if own:
            said.append(_MENTION.sub(lambda found: titles.get(found[1], found[0]), message["text"]))


def core(interactions: Iterable[Interaction], least: int) -> list[Interaction]:
    """Return the first interaction of each user and item, of users and items that have ``least`` or more of them."""
    first: dict[tuple[str, str], Interaction] = {}
    for one in sorted(interactions, key=lambda one: one.time):
        first.setdefault((one.user, one.item), one)
    found = list(first.values())
    while True:
        users, items = Counter(one.user for one in found), Counter(one.item for one in found)
        kept = [one for one in found if users[one.user] >= least and items[one.item] >= least]
        if len(kept) == len(found):
            return kept
        found = kept


def write_atomic(target: Path, interactions: Iterable[Interaction], items: Mapping[str, Mapping[str, str]]) -> Path:
    """Write an ``.inter`` and an ``.item`` file into a folder, whose name they get; return it.

    Interactions with items that are not in ``items`` are left out.

    Raises:
        DataError: If nothing is left.
    """
    known = [one for one in interactions if one.item in items]
    if not known:
        raise DataError(f"{target.name}: no interaction with a known item is left. Lower least, or check the files.")
    met = {one.item for one in known}
    names = list(dict.fromkeys(name for fields in items.values() for name in fields))
    kinds = {"release_year": "token", "categories": "str", "genres": "str"}  # str: "|" between two
    head = ["item_id:token", *(f"{name}:{kinds.get(name, 'token_seq')}" for name in names)]
    lines = [[item, *(fields.get(name, "") for name in names)] for item, fields in items.items() if item in met]
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    rated, asked = any(one.rating is not None for one in known), any(one.request for one in known)
    columns += ["rating:float"] * rated + ["request:token_seq"] * asked
    rows = [
        [
            one.user,
            one.item,
            f"{one.time:.3f}",
            *([f"{one.rating:g}"] if rated else []),
            *([one.request] if asked else []),
        ]
        for one in sorted(known, key=lambda one: (one.user, one.time))
    ]
    target.mkdir(parents=True, exist_ok=True)
    for ending, table in (("item", [head, *lines]), ("inter", [columns, *rows])):
        text = "\n".join("\t".join(map(_plain, line)) for line in table) + "\n"
        write_bytes(target / f"{target.name}.{ending}", text.encode())
    return target


def _plain(value: str) -> str:
    """Return a field without what separates fields and lines."""
    return " ".join(value.split())


def _words(numbers: str) -> str:
    return " ".join(f"w{number}" for number in re.findall(r"\d+", numbers))


# ---------------------------------------------------------------- reading


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: cannot be read ({error}). Give the file as its authors publish it.") from error


def _csv_rows(path: Path, fields: Iterable[str]) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _opened(path) as file:
        reader = csv.DictReader(file)
        missing = [field for field in fields if field not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path.name}: found the fields {reader.fieldnames}, expected {', '.join(missing)} too.")
        yield from reader


def _json_rows(path: Path, fields: Iterable[str]) -> Iterator[dict[str, Any]]:
    needed = tuple(fields)
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: no JSON ({error}).") from error
            missing = [field for field in needed if not isinstance(row, dict) or field not in row]
            if missing:
                raise DataError(f"{path.name}, line {number}: expected the fields {', '.join(missing)}.")
            yield row
