"""A recommender on the Hugging Face hub: its folder, and its model card."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cramer_peft import RequestMaskModel
from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE, SAID, Catalogue
from cramer_peft.recsys.folder import ADAPTER_FOLDER, CARD_FILE, EVALUATION_FILE, MAX_JSON_BYTES, TRAINING_FILE
from cramer_peft.recsys.reading import as_path, read_object
from cramer_peft.recsys.requests.heard import Heard, heard_line
from cramer_peft.storage import MARKER, find_folder, read_safetensors

_FOLDERS = [f"{place}/{kind}" for place in (ADAPTER_FOLDER, BACKBONE_FOLDER) for kind in ("*.json", "*.safetensors")]
FILES = (CATALOGUE_FILE, TRAINING_FILE, EVALUATION_FILE, CARD_FILE, f"{ADAPTER_FOLDER}/{CARD_FILE}", *_FOLDERS)
_LISTED = 20
_CARD = """---
library_name: "cramer-peft"
tags: ["cramer-peft", "recommender-system", "request-mask", "sequential-recommendation"]
---

{marker}

# A recommender that answers requests

A frozen {backbone} over {items:,} items, and an adapter that masks its weights by a person's request, a text. Without
one the list is the frozen model's. Made with the package cramer-peft.

```python
from cramer_peft.recsys import RequestRecommender

recommender = RequestRecommender.load({place}, local_files_only=False)  # False: download it
answer = recommender.recommend([0, 1, 2], {request!r})  # after the first three items
print([recommender.catalogue.titles[item] for item in answer.items], answer.heard)
```

## What it hears

{hears}

## What was measured

{measured}

## Limits

- It knows the items of `catalogue.json` alone, and recommends as people did whom it was trained on.
- Words that the encoder cannot tell apart, the masks cannot either.
- `catalogue.json` holds the items' ids, titles and descriptions, and no histories of people. At {said:,} items it holds
  what people asked for in training.
"""


def recommender_folder(name: str | os.PathLike[str], **hub: Any) -> Path:
    """Return a recommender's folder, given it, the adapter's folder in it, or a name on the hub (``find_folder``)."""
    as_path(name)
    try:
        folder = find_folder(name, FILES, **hub)
    except AdapterFileError as error:
        raise DataError(str(error)) from error
    return folder if (folder / CATALOGUE_FILE).is_file() else folder.absolute().parent


def files_with_results(folder: Path | None, masks: RequestMaskModel) -> list[Path]:
    """Return the files with results in a folder; none if the adapter beside them is another one than this."""
    try:
        there = read_safetensors((folder or Path()) / ADAPTER_FOLDER / "adapter_model.safetensors")[0]
    except AdapterFileError:
        return []
    own = {f"base_model.request_mask_generator.{name}": value for name, value in masks.generator.state_dict().items()}
    same = all(name in there and torch.equal(there[name], value.cpu()) for name, value in own.items())
    named = [] if folder is None or not same else [folder / TRAINING_FILE, folder / EVALUATION_FILE]
    return [path for path in named if path.is_file()]


def recommender_card(
    masks: RequestMaskModel,
    catalogue: Catalogue,
    hear: Callable[[str], Heard | None],
    results: Sequence[Path],
    place: Sequence[str],
) -> str:
    """Return the model card of a recommender, as Markdown with front matter.

    Args:
        masks: The masked backbone.
        catalogue: The items.
        hear: What is understood of a request.
        results: Files that ``train`` and ``evaluate`` wrote, of this recommender.
        place: The arguments that name it on the hub, as code.

    Raises:
        DataError: If a file of results cannot be read.
    """
    names = [name.lower() for name in catalogue.attributes[:2]] or ["more variety"]
    requests = [f"something with {names[0]}", f"nothing with {names[-1]}", f"something like {catalogue.titles[0]}"]
    encoder = masks.adapter().config.encoder
    heard = [(text, hear(text)) for text in requests] if encoder else []
    rows = [
        ("Request encoder", _code(encoder) if encoder else "none: requests are ready vectors"),
        ("Titles", f"{len(set(catalogue.titles)):,}"),
        ("Attributes", _listed(catalogue.attributes)),
        ("Numbers", _listed(sorted(catalogue.numbers))),
        ("Other texts", _listed(sorted(catalogue.texts.keys() - {SAID}))),
        *((f"You say {_code(text)}", _code(heard_line(found))) for text, found in heard if found is not None),
    ]
    return _CARD.format(
        marker=MARKER,
        backbone=type(masks.model).__name__,
        items=len(catalogue),
        place=", ".join(place),
        request=requests[0],
        hears="\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]),
        measured="\n\n".join("\n".join(_table(path)) for path in results)
        or "Nothing of this version. `cramer-peft evaluate` measures it on data of yours.",
        said=sum(map(bool, catalogue.texts.get(SAID, ()))),
    )


def _table(path: Path) -> Iterator[str]:
    """Yield the lines of a table of a file's results."""
    values = read_object(path, "the results of a training or an evaluation", MAX_JSON_BYTES)
    try:
        stage = values["options"].get("stage", "validation")
        wordings = "wordings that no training saw" if stage == "test" else "the wordings of training"
        yield f"The {stage} users of {_code(values['options']['data'])}, top ten of all unseen items, 95% intervals."
        yield f"Requests are made of attributes, in {wordings}; `own requests` are those that the data states.\n"
        yield "| Track | Users | Metric | Frozen | With the request |\n| --- | --- | --- | --- | --- |"
        for track, found in values["tracks" if "tracks" in values else "validation"].items():
            for metric, value in {**found["adapted"], **found["ratios"]}.items():
                frozen = _interval(found["frozen"][metric]) if metric in found["frozen"] else ""
                yield f"| {track} | {found['users']} | {metric} | {frozen} | {_interval(value)} |"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: found no results in it ({error!r:.200}). Train or evaluate again.") from error


def _interval(value: dict[str, float] | None) -> str:
    return "too few users" if value is None else "{value:.3f} [{low:.3f}, {high:.3f}]".format(**value)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(_code, names[:_LISTED])) + more or "none"


def _code(text: str) -> str:
    """Return a text that Markdown shows as it is, in a table, too."""
    plain = " ".join(str(text).replace("`", "'").split())
    return "`" + (plain if len(plain) <= 100 else plain[:99] + "…").replace("|", "\\|") + "`"
