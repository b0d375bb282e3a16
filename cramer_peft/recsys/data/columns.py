"""The columns of a data set: which serves as what, as named by the caller or guessed by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.table import Table, listed


@dataclass(frozen=True)
class Columns:
    """What to read of the tables; a column that is None is found by its name.

    Attributes:
        title_column: The column of the items with the title; the id if there is none.
        attribute_column: The one with the attributes.
        attribute_separator: Separator of an item's attributes, "[]" for lists in brackets; None: found in the values.
        min_attribute_items: Attributes on fewer items are left out.
        min_rating: Interactions with a lower rating are left out, as history and as target; None: every one counts.
        user_column: The column of the interactions with the user.
        item_column: The one with the item; the items have their ids in a column of this name, or one that is guessed.
        time_column: The one with the time: numbers or dates.
        rating_column: The one with the rating, which only ``min_rating`` looks at.
        request_column: The one with what the user asked for when they met the item.
        sep: Separator of the columns in CSV files; None: found in the first line.
        encoding: Of CSV files; None: UTF-8, or UTF-16 if the file says so.
    """

    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None
    min_attribute_items: int = 5
    min_rating: float | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    rating_column: str | None = None
    request_column: str | None = None
    sep: str | None = None
    encoding: str | None = None


_OPTIONS = {  # of the commands
    "user_column": "--user",
    "item_column": "--item",
    "time_column": "--time",
    "rating_column": "--rating",
    "request_column": "--request-column",
    "title_column": "--title",
    "attribute_column": "--attributes",
}
# the first is that of atomic files; compared in lower case, without other signs than letters and digits
_ITEMS = (
    "item_id item product_id product sku movie_id movie track_id track song_id song artist_id artist book_id isbn "
    "article_id article game_id app_id asin parent_asin stock_code variant_id content_id"
)
GUESSES = {
    "user_column": "user_id user uid customer_id customer visitor_id visitor client_id client member_id member "
    "account_id account reviewer_id buyer_id session_id session",
    "item_column": _ITEMS,
    "time_column": "timestamp time ts datetime date event_time created_at played_at purchased_at ordered_at "
    "order_date invoice_date t_dat unix_review_time visited_at",
    "rating_column": "rating stars overall score",
    "request_column": "request",
    "title_column": "title movie_title name item_name product_name product_title prod_name track_name track_title "
    "book_title item_title",
    "attribute_column": "genres class genre categories tags category main_category product_category product_type "
    "category_name department",
}
_ROWS_OF_ITEMS = f"{_ITEMS} id"


def found_columns(
    table: Table, columns: Columns, needed: Sequence[str], optional: Sequence[str] = (), why: str = ""
) -> dict[str, str | None]:
    """Return the column that serves as each field of ``columns``; None for one of ``optional`` that is not there.

    Raises:
        DataError: If one is missing, with the names of the columns that are there.
    """
    found = {field: getattr(columns, field) or guessed(table.names, GUESSES[field]) for field in (*needed, *optional)}
    missing = [field for field in needed if found[field] is None]
    missing += [field for field, name in found.items() if name is not None and name not in table.names]
    if missing:
        named = ", ".join(found[field] or GUESSES[field].split()[0] for field in missing)
        hint = " and ".join(f"{field} ({_OPTIONS[field]})" for field in missing)
        if any(name.replace(".", "").isdigit() for name in table.names):
            hint += ", and write the names of the columns into the first line, if they are not there"
        raise DataError(
            f"{', '.join(filter(None, [table.source, table.notes]))}: columns missing: {named}; columns there: "
            f"{listed(table.names, 50)}.{why} Name another one with {hint}."
        )
    return found


def id_column(items: Table, item_column: str) -> str:
    """Return the column of the items that holds their ids: of the same name as in the interactions, or one
    of the usual ones that names each item once."""
    if item_column in items.names:
        return item_column
    possible = _usual(items.names, _ROWS_OF_ITEMS)
    if not possible:
        raise DataError(
            f"{items.source}: columns missing: {item_column}; columns there: {listed(items.names, 50)}. The ids of the "
            "items stand in a column of the same name as in the interactions: rename one of both."
        )
    return next((name for name in possible if not items[name].duplicated().any()), possible[0])


def guessed(names: Sequence[str], guesses: str) -> str | None:
    """Return the first column with one of the names that are usual, None if there is none."""
    return next(iter(_usual(names, guesses)), None)


def _usual(names: Sequence[str], guesses: str) -> list[str]:
    plain = {_plain(name): name for name in reversed(names)}
    return [plain[guess] for guess in map(_plain, guesses.split()) if guess in plain]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())
