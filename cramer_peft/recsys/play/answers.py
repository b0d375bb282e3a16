"""From the body of a call to the lists that the page shows."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from cramer_peft.errors import CramerError, DataError
from cramer_peft.recsys.data.catalogue import title_form
from cramer_peft.recsys.play.people import Person, visits_of
from cramer_peft.recsys.play.reasons import reasons_for
from cramer_peft.recsys.reading import printable
from cramer_peft.recsys.recommender import Answer, RequestRecommender
from cramer_peft.recsys.requests.number_columns import columns_of_numbers, shown_year, years_of

MAX_REQUESTS = 4
_LENGTH, _SUGGESTIONS, _MAX_TITLE, _MAX_TEXT = 10, 8, 200, 1000


class Player:
    """Answers what the page asks.

    Args:
        recommender: Backbone, adapter and catalogue.
    """

    def __init__(self, recommender: RequestRecommender) -> None:
        self._recommender, self.catalogue = recommender, recommender.catalogue
        self._years = years_of(self.catalogue)
        self._columns, self._visits = columns_of_numbers(self.catalogue), visits_of(self.catalogue)
        order = self._visits.argsort(descending=True, stable=True).tolist()
        self._titles = [(title_form(self.catalogue.titles[item]), item) for item in order]

    def item(self, item: int) -> dict[str, Any]:
        """Return what the page shows of an item."""
        title, year = self.catalogue.titles[item], math.nan if self._years is None else float(self._years[item])
        names = list(self.catalogue.attribute_names(item))
        return {
            "id": self.catalogue.item_ids[item],
            "title": title,
            "year": shown_year(title, year),
            "attributes": names,
        }

    def person(self, person: Person) -> dict[str, Any]:
        """Return what the page shows of a person."""
        return {"name": person[0], "history": [self.item(item) for item in person[1]]}

    def suggest(self, text: str) -> list[dict[str, Any]]:
        """Return items with a text in their titles: first those that begin with it, of equal ones the best known."""
        form = title_form(printable(text[:_MAX_TITLE]))
        found = [(title, item) for title, item in self._titles if form and form in title]
        found.sort(key=lambda one: (not one[0].startswith(form), f" {form}" not in f" {one[0]}"))
        return [self.item(item) for _, item in found[:_SUGGESTIONS]]

    def answer(self, body: bytes) -> dict[str, Any]:
        """Return the history, the list without a request, and for each request its list or why there is none.

        Raises:
            DataError: If the body is not what the page sends, or its history cannot be used.
        """
        try:
            call = json.loads(body)
            ids, texts, strength = call["history"], call["requests"], call["strength"]
            short = len(texts) <= MAX_REQUESTS and all(isinstance(one, str) and len(one) <= _MAX_TEXT for one in texts)
            sound = isinstance(ids, list) and short
        except (ValueError, RecursionError, KeyError, TypeError):
            sound = False
        if not sound:
            most = f"{MAX_REQUESTS} requests of {_MAX_TEXT} characters"
            raise DataError(f"expected the page's own call with at most {most}. Shorten it, or reload the page.")
        history = [self.catalogue.index_of(item_id) for item_id in ids]
        plain = self._recommender.recommend(history, None, k=_LENGTH)
        return {
            "history": [self.item(item) for item in history],
            "before": [self.item(item) for item in plain.items],
            "answers": [self._of_request(history, text, strength) for text in texts],
        }

    def _of_request(self, history: list[int], text: str, strength: float) -> dict[str, Any]:
        try:
            answer = self._recommender.recommend(history, text, strength, _LENGTH)
        except CramerError as error:  # of this request: the others have their lists
            return {"request": printable(text), "error": printable(str(error.args[0]))}
        items = [{**self._reasoned(item, answer), "came": item in answer.came} for item in answer.items]
        went = [self._reasoned(item, answer) for item in answer.went]
        return {"request": text, "heard": answer.heard and asdict(answer.heard), "items": items, "went": went}

    def _reasoned(self, item: int, answer: Answer) -> dict[str, Any]:
        return {
            **self.item(item),
            "reasons": reasons_for(self.catalogue, item, answer.heard, self._columns, self._visits),
        }
