"""From the body of a call to what the model is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cramer_peft.recsys.data.catalogue import Catalogue

from .lookup import ItemLookup
from .refused import Refused, quoted
from .settings import Settings

FIELDS = ("history", "request", "before", "k")
_EXAMPLE = '{"history": ["Alien"], "request": "something funny", "k": 10}'
_NAMED = 10  # entries of a history that one message names


@dataclass(frozen=True)
class Ask:
    """One valid call.

    Attributes:
        history: Item indices, oldest first.
        request: What is asked, None for nothing.
        k: Length of the list.
        before: Earlier requests of the same conversation, oldest first.
    """

    history: tuple[int, ...]
    request: str | None
    k: int
    before: tuple[str, ...] = ()


class AskReader:
    """Reads bodies against a catalogue and the limits."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._items = len(catalogue)
        self._lookup = ItemLookup(catalogue)
        self._settings = settings

    def read(self, body: bytes) -> Ask:
        """What a body asks.

        Raises:
            Refused: 400 if it is no JSON object, 422 if a field is missing, unknown, of another type, beyond a
                limit, or names items that are not there; the message names the field.
        """
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON ({quoted(str(error))}). Send {_EXAMPLE}.") from None
        if not isinstance(document, dict):
            raise Refused(400, f"the body is a JSON {type(document).__name__}, expected an object: {_EXAMPLE}.")
        unknown = [name for name in document if name not in FIELDS]
        if unknown:
            names = ", ".join(quoted(name) for name in unknown[:_NAMED])
            raise Refused(422, f"fields not expected: {names}. There are {', '.join(FIELDS)}.", quoted(unknown[0]))
        request = self._text(document.get("request"), "request")
        before = self._before(document.get("before"), request)
        k = self._k(document.get("k", 10))
        return Ask(self._history(document.get("history")), request, k, before)

    def _text(self, value: object, field: str) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise Refused(422, f"{field}: found {quoted(value)}, expected a text or null.", field)
        limit = self._settings.text_length
        if len(value) > limit:
            raise Refused(422, f"{field}: found {len(value)} characters, expected at most {limit}.", field)
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused(422, f"{field}: half of a surrogate pair is no character. Send valid Unicode.", field)
        return value if value.strip() else None

    def _before(self, value: object, request: str | None) -> tuple[str, ...]:
        if value is None:
            return ()
        limit = self._settings.before_length
        if not isinstance(value, list) or len(value) > limit:
            found = f"{len(value)} texts" if isinstance(value, list) else quoted(value)
            message = f"before: found {found}, expected a list of at most {limit} earlier requests."
            raise Refused(422, message, "before")
        texts = [self._text(text, f"before[{place}]") for place, text in enumerate(value)]
        said = tuple(text for text in texts if text is not None)
        if said and request is None:
            raise Refused(422, "before: found earlier requests without a request. Send the last one there.", "before")
        return said

    def _k(self, value: object) -> int:
        limit = self._settings.max_k
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise Refused(422, f"k: found {quoted(value)}, expected a whole number from 1 to {limit}.", "k")
        return value

    def _history(self, value: object) -> tuple[int, ...]:
        limit = self._settings.history_length
        if not isinstance(value, list) or not value:
            raise Refused(422, f"history: found {quoted(value)}, expected a list of item ids or titles.", "history")
        if len(value) > limit:
            message = f"history: found {len(value)} items, expected at most {limit}. Send the most recent ones."
            raise Refused(422, message, "history")
        found, problems = [], {}
        for position, entry in enumerate(value):
            try:
                found.append(self._lookup.find(entry))
            except LookupError as error:
                problems[f"history[{position}]"] = str(error)
        if problems:
            named = "; ".join(f"{place}: {text}" for place, text in list(problems.items())[:_NAMED])
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise Refused(422, f"{named}{more}.", next(iter(problems)))
        if len(set(found)) == self._items:
            raise Refused(422, "history: it holds every item, so none is left to recommend.", "history")
        return tuple(found)
