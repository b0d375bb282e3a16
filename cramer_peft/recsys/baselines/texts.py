"""The text of an item, for baselines that read it."""

from __future__ import annotations

from cramer_peft.recsys.catalogue import Catalogue
from cramer_peft.recsys.requests import phrase


def item_texts(catalogue: Catalogue) -> list[str]:
    """Each item's title and attributes, as text fusion reads them."""
    return [
        " ".join([title, *(phrase(name) for name in catalogue.attribute_names(index))])
        for index, title in enumerate(catalogue.titles)
    ]
