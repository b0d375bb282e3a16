"""Real requests: recommendations from human film dialogues (ReDial), matched to a catalogue's titles."""

from __future__ import annotations

import os
import re
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.storage import open_regular, parse_json

MAX_REDIAL_BYTES = 64 * 2**20
MAX_TEXT = 10_000
MAX_HISTORY = 1_000

_FIELDS = ("dialogue", "history", "request", "target")
_ARTICLES = "the|a|an|la|le|les|l'|il|lo|gli|el|los|las|un|une|der|die|das|ein|eine"
_TRAILING_ARTICLE = re.compile(rf"(.*), ({_ARTICLES})", re.DOTALL)
_YEAR = re.compile(r"(.*)\(([0-9]{4})\)", re.DOTALL)
_BRACKETS = re.compile(r"\(([^()]*)\)")
_KNOWN_AS = re.compile(r"\s*a\.?k\.?a\.?\s+", re.IGNORECASE)
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class RedialRequest:
    """One recommendation that a seeker liked, and what they had said before it.

    Args:
        dialogue: The dialogue's id; several requests may be from one.
        history: Titles the seeker had said they liked, in the order of the dialogue; may be empty.
        request: The seeker's utterances before the recommendation, each title in them replaced by ``[movie]``.
        target: The title that was recommended and liked.
    """

    dialogue: str
    history: tuple[str, ...]
    request: str
    target: str


@dataclass(frozen=True)
class MatchReport:
    """What became of the requests when their titles were looked for in a catalogue.

    Each request is counted in one of the first five fields.

    Args:
        kept: Requests whose target is in the catalogue and not in their history, which is long enough.
        target_unknown: No item has the target's title and year.
        target_ambiguous: Several items have them.
        target_seen: The target is in the history, so it can not be recommended.
        short_history: Too few titles of the history are in the catalogue.
        targets_matched: Requests whose target is one item, whether they are kept or not.
        history_titles: Titles in all histories.
        history_matched: Those of them that are one item.
        history_ambiguous: Those that may be several items.
    """

    kept: int
    target_unknown: int
    target_ambiguous: int
    target_seen: int
    short_history: int
    targets_matched: int
    history_titles: int
    history_matched: int
    history_ambiguous: int

    @property
    def requests(self) -> int:
        """Number of requests that were matched against the catalogue."""
        return self.kept + self.target_unknown + self.target_ambiguous + self.target_seen + self.short_history

    @property
    def target_rate(self) -> float:
        """Share of the targets that are one item of the catalogue."""
        return self.targets_matched / self.requests

    @property
    def history_rate(self) -> float:
        """Share of the titles in histories that are one item of the catalogue; 0 if there are none."""
        return self.history_matched / max(self.history_titles, 1)


@dataclass(frozen=True, eq=False)
class MatchedRequests:
    """The requests that a catalogue can answer, row by row.

    Args:
        histories: Per row an int64 tensor of shape ``(n,)``: distinct item indices in the dialogue's order.
        requests: The utterances, a text for each row.
        targets: Int64, shape ``(rows,)``; never in the row's history.
        dialogues: Each row's dialogue. Rows of one dialogue are not independent: draw whole dialogues in a bootstrap.
        report: What was kept and what was left out.
    """

    histories: tuple[Tensor, ...]
    requests: tuple[str, ...]
    targets: Tensor
    dialogues: tuple[str, ...]
    report: MatchReport

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.requests)


class TitleIndex:
    """Finds a catalogue's items by title and year, however the title is spelt.

    Case, accents, punctuation and repeated spaces are ignored, "&" is "and", and a trailing article counts as a
    leading one ("Matrix, The" is "The Matrix"). A title with other names in brackets ("Seven (a.k.a. Se7en)")
    is found by each of them.

    Args:
        catalogue: The items.
        years: Per item its year or None; by default the four digits in brackets at the end of the title, else of
            the id.

    Raises:
        DataError: If there is not one year for each item.
    """

    def __init__(self, catalogue: Catalogue, years: Sequence[int | None] | None = None) -> None:
        if years is not None and len(years) != len(catalogue):
            raise DataError(f"years: found {len(years)}, expected one for each of the {len(catalogue)} items.")
        self._items: defaultdict[str, list[tuple[int, int | None]]] = defaultdict(list)
        for item, (item_id, full) in enumerate(zip(catalogue.item_ids, catalogue.titles, strict=True)):
            title, year = split_year(full)
            if years is not None:
                year = years[item]
            elif year is None:
                year = split_year(item_id)[1]
            for key in {title_key(name) for name in _names(title)} - {""}:
                self._items[key].append((item, year))

    def find(self, title: str) -> tuple[int, ...]:
        """Return the indices of all items that ``title`` may mean, rising.

        Args:
            title: With the year in brackets at its end, items of that year are meant, or where there are none, those
                whose year is not known; without it, items of any year.
        """
        name, year = split_year(title)
        items = self._items.get(title_key(name), [])
        if year is None:
            return tuple(item for item, _ in items)
        same = tuple(item for item, known in items if known == year)
        return same or tuple(item for item, known in items if known is None)


def split_year(title: str) -> tuple[str, int | None]:
    """Return a title without the year in brackets at its end, and that year or None."""
    title = title.strip()
    found = _YEAR.fullmatch(title)
    name = found[1].strip() if found else ""
    return (name, int(found[2])) if found and name else (title, None)


def title_key(title: str) -> str:
    """Return what is left of a title's spelling when it is compared: see :class:`TitleIndex`."""
    decomposed = unicodedata.normalize("NFKD", title.casefold())
    plain = "".join(character for character in decomposed if not unicodedata.combining(character))
    plain = plain.replace("\u2019", "'").strip()
    found = _TRAILING_ARTICLE.fullmatch(plain)
    if found:
        plain = found[2] + ("" if found[2].endswith("'") else " ") + found[1]
    return " ".join(_WORDS.findall(plain.replace("'", "").replace("&", " and ")))


def _names(title: str) -> Iterator[str]:
    """Return the title as it is, without what is in brackets, and each thing in brackets."""
    yield title
    inside = _BRACKETS.findall(title)
    if inside:
        yield _BRACKETS.sub(" ", title)
        for name in inside:
            yield _KNOWN_AS.sub("", name, count=1) if _KNOWN_AS.match(name) else name


def read_redial(path: str | os.PathLike[str]) -> tuple[RedialRequest, ...]:
    """Read requests from a file of JSON lines.

    Args:
        path: The file, at most ``MAX_REDIAL_BYTES`` long, UTF-8. Each line is an object with exactly ``dialogue``,
            ``history`` (a list), ``request`` and ``target``, all text.

    Raises:
        DataError: If it is not such a file; the message names the line. A text may have ``MAX_TEXT`` characters, a
            history ``MAX_HISTORY`` titles; dialogue, target and titles may not be blank.
    """
    source = Path(path)
    try:
        with open_regular(source, "a file of requests in JSON lines", MAX_REDIAL_BYTES) as (file, size):
            data = file.read(size)
    except AdapterFileError as error:
        raise DataError(str(error)) from error
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if not lines:
        raise DataError(f"{source}: the file is empty. Expected one JSON object a line.")
    return tuple(_parse_line(f"{source}, line {number}", line) for number, line in enumerate(lines, start=1))


def _parse_line(place: str, line: bytes) -> RedialRequest:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{place}: not a JSON object in UTF-8 ({error}).") from error
    if not isinstance(record, dict) or sorted(record) != sorted(_FIELDS):
        found = sorted(record) if isinstance(record, dict) else record
        raise DataError(f"{place}: found {reprlib.repr(found)}, expected an object with exactly {', '.join(_FIELDS)}.")
    history = record["history"]
    if not isinstance(history, list) or len(history) > MAX_HISTORY:
        raise DataError(f"{place}: history: expected a list of at most {MAX_HISTORY} titles.")
    return RedialRequest(
        dialogue=_text(place, "dialogue", record["dialogue"]),
        history=tuple(_text(place, f"history[{position}]", title) for position, title in enumerate(history)),
        request=_text(place, "request", record["request"], may_be_blank=True),
        target=_text(place, "target", record["target"]),
    )


def _text(place: str, name: str, value: Any, may_be_blank: bool = False) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (may_be_blank or value.strip()):
        kind = "text" if may_be_blank else "text that is not blank,"
        raise DataError(
            f"{place}: {name}: found {reprlib.repr(value)}, expected {kind} of at most {MAX_TEXT} characters."
        )
    return value


def match_requests(
    requests: Sequence[RedialRequest],
    catalogue: Catalogue,
    years: Sequence[int | None] | None = None,
    min_history: int = 1,
) -> MatchedRequests:
    """Turn requests about titles into requests about a catalogue's items.

    Titles are matched as :class:`TitleIndex` says; one that may mean several items is not matched. Titles of a
    history that are not matched are left out of it, and of several that are one item the first is kept.

    Args:
        requests: What :func:`read_redial` returned.
        catalogue: The items to recommend from.
        years: Per item its year or None, for example from :func:`read_years`; by default from titles and ids.
        min_history: Items a history must have for its request to be kept; 0 keeps requests without any, which
            :func:`~cramer_peft.recsys.data.split.pad_histories` refuses.

    Raises:
        DataError: If there are no requests, ``min_history`` is negative, the years do not fit the catalogue, or
            nothing is kept.
    """
    if not requests:
        raise DataError("requests: found none, expected at least one.")
    if min_history < 0:
        raise DataError(f"min_history: found {min_history}, expected 0 or more.")
    index = TitleIndex(catalogue, years)
    counts: defaultdict[str, int] = defaultdict(int)
    kept: list[tuple[list[int], RedialRequest, int]] = []
    for request in requests:
        found = [index.find(title) for title in request.history]
        counts["history_titles"] += len(found)
        counts["history_matched"] += sum(len(items) == 1 for items in found)
        counts["history_ambiguous"] += sum(len(items) > 1 for items in found)
        history = list(dict.fromkeys(items[0] for items in found if len(items) == 1))
        target = index.find(request.target)
        counts["targets_matched"] += len(target) == 1
        outcome = _outcome(target, history, min_history)
        counts[outcome] += 1
        if outcome == "kept":
            kept.append((history, request, target[0]))
    report = MatchReport(**{name: counts[name] for name in MatchReport.__dataclass_fields__})
    if not kept:
        raise DataError(f"No request can be kept with this catalogue of {len(catalogue)} items: {report}.")
    return MatchedRequests(
        histories=tuple(torch.tensor(history, dtype=torch.long) for history, _, _ in kept),
        requests=tuple(request.request for _, request, _ in kept),
        targets=torch.tensor([target for _, _, target in kept], dtype=torch.long),
        dialogues=tuple(request.dialogue for _, request, _ in kept),
        report=report,
    )


def _outcome(target: tuple[int, ...], history: list[int], min_history: int) -> str:
    if not target:
        return "target_unknown"
    if len(target) > 1:
        return "target_ambiguous"
    if target[0] in history:
        return "target_seen"
    return "short_history" if len(history) < min_history else "kept"


def read_years(item_path: str | os.PathLike[str], column: str = "release_year") -> tuple[int | None, ...]:
    """Read each item's year from an ``.item`` file, in the file's order, which is the catalogue's.

    Args:
        item_path: The file.
        column: Its field with the year: ``token`` or ``float``; blank where the year is not known.

    Raises:
        DataError: If the file is not an atomic file, has no such field, or a year is no whole number.
        MissingExtraError: If pandas is not installed.
    """
    frame = read_atomic(item_path)
    if column not in frame:
        raise DataError(f"{item_path}: fields missing: {column}; fields there: {', '.join(frame)}. Name another one.")
    return tuple(_year(item_path, line, value) for line, value in enumerate(frame[column], start=2))


def _year(path: str | os.PathLike[str], line: int, value: str | float) -> int | None:
    text = str(value).strip()
    if text in ("", "nan"):
        return None
    found = re.fullmatch(r"([0-9]{1,4})(\.0)?", text)
    if not found:
        raise DataError(f"{path}, line {line}: the year is {text!r}, expected a whole number.")
    return int(found[1])
