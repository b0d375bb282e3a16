"""A recommender's folder on the Hugging Face hub, and its model card."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cramer_peft import RequestMaskModel
from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE, SAID, Catalogue
from cramer_peft.recsys.reading import as_path, read_object
from cramer_peft.recsys.requests.heard import Heard, heard_line
from cramer_peft.storage import MARKER, find_folder, read_safetensors

ADAPTER_FOLDER, TRAINING_FILE, EVALUATION_FILE = "adapter", "training.json", "evaluation.json"
CARD_FILE = "README.md"
FILES = (
    CATALOGUE_FILE,
    TRAINING_FILE,
    EVALUATION_FILE,
    CARD_FILE,
    *(f"{folder}/{kind}" for folder in (ADAPTER_FOLDER, BACKBONE_FOLDER) for kind in ("*.json", "*.safetensors")),
    f"{ADAPTER_FOLDER}/{CARD_FILE}",
)
_GENERATOR = "base_model.request_mask_generator."
_MAX_JSON_BYTES = 1 << 20
_LISTED = 20


def recommender_folder(
    name: str | os.PathLike[str],
    revision: str | None = None,
    subfolder: str | None = None,
    local_files_only: bool = True,
) -> Path:
    """Return a recommender's folder, given it, the adapter's folder in it, or a name on the hub."""
    as_path(name)
    try:
        folder = find_folder(name, FILES, revision, subfolder, local_files_only)
    except AdapterFileError as error:
        raise DataError(str(error)) from error
    return folder if (folder / CATALOGUE_FILE).is_file() else folder.absolute().parent


def files_with_results(folder: Path | None, masks: RequestMaskModel) -> list[Path]:
    """Return the files with results in a folder; none if the adapter beside them is another than this one."""
    if folder is None:
        return []
    try:
        there = read_safetensors(folder / ADAPTER_FOLDER / "adapter_model.safetensors")[0]
    except AdapterFileError:
        return []
    own = {f"{_GENERATOR}{name}": value.cpu() for name, value in masks.generator.state_dict().items()}
    if any(name not in there or not torch.equal(there[name], value) for name, value in own.items()):
        return []
    return [folder / name for name in (TRAINING_FILE, EVALUATION_FILE) if (folder / name).is_file()]


def recommender_card(
    masks: RequestMaskModel,
    catalogue: Catalogue,
    hear: Callable[[str], Heard | None],
    results: list[Path],
    place: str,
) -> str:
    """Return the model card of a recommender, as Markdown with front matter.

    Args:
        masks: The masked backbone.
        catalogue: The items.
        hear: What is understood of a request.
        results: Files that ``train`` and ``evaluate`` wrote, of this recommender.
        place: The arguments that name it on the hub.

    Raises:
        DataError: If a file of results cannot be read.
    """
    examples, said = _examples(catalogue), sum(map(bool, catalogue.texts.get(SAID, ())))
    parts = [
        '---\nlibrary_name: "cramer-peft"\n'
        'tags: ["cramer-peft", "recommender-system", "request-mask", "sequential-recommendation"]\n---',
        MARKER,
        "# A recommender that answers requests",
        f"A frozen {type(masks.model).__name__} over {len(catalogue):,} items, and an adapter that masks its weights by "
        "a person's request, a text. Without one the list is the frozen model's. Made with the package cramer-peft.",
        f"""```python
from cramer_peft.recsys import RequestRecommender

recommender = RequestRecommender.load({place}, local_files_only=False)  # False: download it
answer = recommender.recommend([0, 1, 2], {examples[0]!r})  # after the first three items
print([recommender.catalogue.titles[item] for item in answer.items], answer.heard)
```""",
        "## What it hears",
        "\n".join(_hears(masks, catalogue, examples, hear)),
        "## What was measured",
        *map(_table, results),
        "Requests are sentences made from the items' attributes, except `own requests`, which the data states."
        if results
        else "Nothing of this version. `cramer-peft evaluate` measures it on data of yours.",
        "## Limits",
        "- It knows the items of `catalogue.json` alone, and recommends as people did whom it was trained on.\n"
        "- Words that the encoder cannot tell apart, the masks cannot either.\n"
        "- `catalogue.json` holds the items' ids, titles and descriptions; no histories of people. "
        f"Of what people asked for in training it holds texts at {said:,} items.",
    ]
    return "\n\n".join(parts) + "\n"


def _examples(catalogue: Catalogue) -> list[str]:
    """Return short requests about what the catalogue holds."""
    names = [name.lower() for name in catalogue.attributes[:2]] or ["more variety"]
    return [f"something with {names[0]}", f"nothing with {names[-1]}", f"something like {catalogue.titles[0]}"]


def _hears(
    masks: RequestMaskModel, catalogue: Catalogue, examples: list[str], hear: Callable[[str], Heard | None]
) -> list[str]:
    """Return the lines of tables of what the encoder knows, and of what it hears in some requests."""
    encoder = masks.peft_config[masks.active_adapters[0]].encoder
    rows = [
        ("", ""),
        ("---", "---"),
        ("Request encoder", _code(encoder) if encoder else "none: requests are ready vectors"),
        ("Titles", f"{len(set(catalogue.titles)):,}"),
        ("Attributes", _listed(catalogue.attributes)),
        ("Numbers", _listed(sorted(catalogue.numbers))),
        ("Other texts", _listed(sorted(catalogue.texts.keys() - {SAID}))),
    ]
    heard = {text: hear(text) for text in examples} if encoder else {}
    rows += [(f"You say {_code(text)}", _code(heard_line(found))) for text, found in heard.items() if found is not None]
    return [f"| {name} | {value} |" for name, value in rows]


def _table(path: Path) -> str:
    """Return the table of a file of results."""
    values = read_object(path, "the results of a training or an evaluation", _MAX_JSON_BYTES)
    try:
        stage = values["options"].get("stage", "validation")
        wordings = "wordings that no training saw" if stage == "test" else "the wordings of training"
        lines = [
            f"The {stage} users of {_code(values['options']['data'])}, {wordings}. Top ten of all unseen items, 95% "
            "intervals over users:\n",
            "| Track | Users | Metric | Frozen | With the request |",
            "| --- | --- | --- | --- | --- |",
        ]
        for track, found in (values["tracks"] if "tracks" in values else values["validation"]).items():
            for metric, value in {**found["adapted"], **found["ratios"]}.items():
                frozen = _interval(found["frozen"][metric]) if metric in found["frozen"] else ""
                lines.append(f"| {track} | {found['users']} | {metric} | {frozen} | {_interval(value)} |")
        return "\n".join(lines)
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
