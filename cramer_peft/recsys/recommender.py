"""A recommender that answers requests, as a folder: frozen backbone, adapter, catalogue."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, load_request_masks
from cramer_peft.encoders import check_texts
from cramer_peft.errors import DataError, RequestError
from cramer_peft.recsys.backbones import load_backbone, save_backbone
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.backbones.weights import WEIGHT_NAMES
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE, Catalogue
from cramer_peft.recsys.data.catalogue_digest import check_count, check_digest, write_digest
from cramer_peft.recsys.data.histories import as_history, pad_histories, seen_mask, whole_number
from cramer_peft.recsys.data.own_data import Columns, OwnData, Protocol, check_protocol, load_own_data
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.devices import brought_to, device_of, fastest_device
from cramer_peft.recsys.evaluation.metrics import finite_scores, top_items
from cramer_peft.recsys.evaluation.results import TrackResult, evaluate_stage
from cramer_peft.recsys.evaluation.users import mask_scorer
from cramer_peft.recsys.hub import (
    ADAPTER_FOLDER,
    CARD_FILE,
    FILES,
    TRAINING_FILE,
    files_with_results,
    recommender_card,
    recommender_folder,
)
from cramer_peft.recsys.masks import describe_items
from cramer_peft.recsys.new_items import check_extensible, checked_embeddings, with_new_items
from cramer_peft.recsys.reading import as_path, read_object
from cramer_peft.recsys.requests.catalogue_encoder import without_cache
from cramer_peft.recsys.requests.heard import Heard
from cramer_peft.recsys.requests.hearing import HearingEncoder
from cramer_peft.recsys.requests.request_encoders import save_words, stored_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.storage import new_version, push_folder, write_model_card

_MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A list of recommendations, best first, beside the list without the request."""

    items: list[int]
    frozen_items: list[int]
    shares: dict[str, tuple[float, float]]  # of each attribute: without the request, with it; if either is not 0
    heard: Heard | None = None  # what was understood; None if the encoder does not tell

    @property
    def came(self) -> list[int]:
        """Items that are in the list only with the request."""
        return [item for item in self.items if item not in self.frozen_items]

    @property
    def went(self) -> list[int]:
        """Items that are in the list only without the request."""
        return [item for item in self.frozen_items if item not in self.items]


@dataclass(frozen=True)
class RequestRecommender:
    """A backbone with request masks, and the catalogue that it recommends from.

    ``folder`` is where it was loaded from or trained, if it was: its results are there.
    """

    masks: RequestMaskModel
    catalogue: Catalogue
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_count(self.masks.model, self.catalogue)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter and the catalogue into ``folder``, where :func:`save_backbone` wrote the backbone.

        A digest of the catalogue goes beside the weights of both, so that :meth:`load` refuses another catalogue. All
        or nothing: an error leaves the folder as it was. After :meth:`add_items`, the extended backbone is written,
        too, in place of one that knows fewer of the items.

        Raises:
            DataError: If the backbone there was trained on another catalogue.
        """
        root = as_path(folder)
        added = self.catalogue.described_items is not None
        if not (added and self._extends(root)):
            check_digest(root / BACKBONE_FOLDER, self.catalogue)
        with new_version(root, rf"{BACKBONE_FOLDER}/{WEIGHT_NAMES}" if added else None) as new:
            keep_card(root, new)
            self.masks.save_pretrained(new / ADAPTER_FOLDER)
            if self._config.encoder is not None:
                save_words(self.masks.encoder(), new / ADAPTER_FOLDER)
            self.catalogue.save(new / CATALOGUE_FILE)
            write_digest(new / ADAPTER_FOLDER, self.catalogue, content=True)
            if added:
                backbone: Any = copy.deepcopy(self.masks).unload()
                save_backbone(backbone, new, self.catalogue)
            elif (root / BACKBONE_FOLDER).is_dir():
                (new / BACKBONE_FOLDER).mkdir()
                write_digest(new / BACKBONE_FOLDER, self.catalogue, content=False)

    @property
    def _config(self) -> RequestMaskConfig:
        return self.masks.peft_config[self.masks.active_adapters[0]]

    def _extends(self, root: Path) -> bool:
        """Return True if the recommender in a folder knows the first of these items and no others."""
        path = root / CATALOGUE_FILE
        there = Catalogue.load(path).item_ids if path.is_file() else None
        return there is not None and self.catalogue.item_ids[: len(there)] == there

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = True,
    ) -> RequestRecommender:
        """Load a folder that :func:`save_backbone` and :meth:`save` wrote, or :meth:`push_to_hub` pushed.

        Args:
            folder: The folder itself, or the adapter's folder in it. If there is none: a name on the hub,
                ``"user/name"``, whose files lie in the hub's cache on this machine.
            revision: Branch, tag or commit on the hub.
            subfolder: A folder inside ``folder``.
            local_files_only: False to download from the hub what the cache does not have.

        Raises:
            DataError: If a part is missing or unreadable, or the catalogue is not that of the other parts.
            AdapterFileError: If the adapter does not fit the backbone.
            DownloadError: If the hub does not give the files.
        """
        hub = {"revision": revision, "subfolder": subfolder, "local_files_only": local_files_only}
        root = recommender_folder(folder, **hub)
        for name in (CATALOGUE_FILE, BACKBONE_FOLDER, ADAPTER_FOLDER):
            if not (root / name).exists():
                raise DataError(
                    f"{folder} is not a recommender folder: {name} is missing. Give the folder that "
                    "`cramer-peft train` or `cramer-peft demo` wrote, or the adapter folder in it."
                )
        catalogue = Catalogue.load(root / CATALOGUE_FILE)
        backbone = load_backbone(root / BACKBONE_FOLDER, catalogue)
        masks = load_request_masks(backbone, root / ADAPTER_FOLDER)
        check_digest(root / ADAPTER_FOLDER, catalogue)
        named = masks.peft_config[masks.active_adapters[0]].encoder
        encoder = stored_encoder(named, catalogue, backbone, root / ADAPTER_FOLDER)
        if encoder is not None:
            masks.set_encoder(encoder)
        describe_items(masks, catalogue)
        return cls(masks, catalogue, root)

    def model_card(self, name: str = "user/name", **hub: Any) -> str:
        """Return a card, as Markdown, that says what is heard and was measured; arguments as for :meth:`load`."""
        place = [repr(name), *(f"{key}={value!r}" for key, value in hub.items() if value)]
        results = files_with_results(self.folder, self.masks)
        return recommender_card(self.masks, self.catalogue, self.hear, results, place)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        private: bool | None = True,
        token: str | bool | None = None,
    ) -> str:
        """Upload the whole recommender to the Hugging Face hub, and return the commit's address.

        The arguments are as for :meth:`cramer_peft.RequestMaskModel.push_to_hub`. The repository must be private unless
        you say otherwise: the catalogue may hold what people asked for in training.
        """
        with tempfile.TemporaryDirectory() as name:
            folder, backbone = Path(name), copy.deepcopy(self.masks).unload()
            save_backbone(cast(Any, backbone), folder, self.catalogue)
            self.save(folder)
            card = self.folder / CARD_FILE if self.folder is not None else folder / CARD_FILE
            for path in (card, *files_with_results(self.folder, self.masks)):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
            write_model_card(folder, self.model_card(repo_id, revision=revision, subfolder=subfolder))
            return push_folder(folder, repo_id, FILES, revision, subfolder, private, token)

    def add_items(self, items: Catalogue, embeddings: Tensor | None = None) -> RequestRecommender:
        """Return a recommender that knows new items, too, after the others; nothing is trained.

        This one stays as it is, and the new one shares no memory with it. The other items' numbers, embeddings,
        features and values stay the same. A request is described by the items known in training alone, so its vector
        stays the same, too. :meth:`save` writes the extended backbone beside the adapter.

        Args:
            items: The new items. Their attributes must be among those of the catalogue.
            embeddings: Their embeddings in the backbone, (items, width) floating point. None: predicted from their
                texts, see :func:`~cramer_peft.recsys.new_items.predicted_embeddings`.

        Raises:
            DataError: If an item is known already, an attribute is not, or the embeddings are of another shape or not
                finite.
            UnsupportedError: If the backbone's item table cannot be extended, or the adapter has a gate for each item.
        """
        if not len(items):
            return self
        grown = self.catalogue.with_items(items)
        check_extensible(self.masks)
        vectors = checked_embeddings(self.masks, grown, embeddings)
        return RequestRecommender(with_new_items(self.masks, grown, vectors), grown)

    def recommend(
        self,
        history: Sequence[int],
        request: str | None,
        strength: float = 1.0,
        k: int = 10,
        before: Sequence[str] = (),
    ) -> Answer:
        """Recommend the k best unseen items under a request, beside those without it.

        Args:
            history: Item indices, oldest first.
            request: The request; None or blank for none.
            strength: Strength of the request.
            k: Length of the list; it is shorter if fewer items are unseen.
            before: Earlier requests of the same conversation, oldest first: ``request`` may refer to them, as "less of
                that" does, and what they ask for still counts, the longer ago the less.

        Raises:
            DataError: If the history is empty, holds unknown items or every item, k is below 1, or a score is not
                finite, as with a huge strength; or if ``before`` comes without a request, or to an encoder that reads
                one request alone.
            RequestError: If the request or its strength is of another kind.
        """
        items, k = as_history(history, len(self.catalogue)), whole_number("k", k)
        seen = seen_mask([items], len(self.catalogue))
        if k < 1 or bool(seen.all()):
            raise DataError(f"found k={k} and {int((~seen).sum())} unseen items, expected 1 or more of both.")
        k = min(k, int((~seen).sum()))
        model = self.masks.model
        with torch.no_grad():
            inputs = brought_to(model, pad_histories([items], int(model.max_length)))  # type: ignore[arg-type]
            frozen = top_items(finite_scores(self.masks(inputs, request=None)).cpu(), seen, k)[0]
            heard, asked_for = self.listen(request, items.tolist(), before)
            scores = finite_scores(self.masks(inputs, request=asked_for, request_strength=strength)).cpu()
        if len(scores) != 1:
            raise RequestError(f"found a request or a strength of {len(scores)} rows, expected one for one history.")
        asked = top_items(scores, seen, k)[0]
        return Answer(asked.tolist(), frozen.tolist(), self._shares(frozen, asked), heard)

    def hear(self, request: str, before: Sequence[str] = ()) -> Heard | None:
        """Return what is understood of a request; None if the encoder does not tell."""
        return self.listen(request, (), before)[0]

    def listen(
        self, request: Any, history: Sequence[int] = (), before: Sequence[str] = ()
    ) -> tuple[Heard | None, str | Tensor | None]:
        """Return what is understood of a request, None if the encoder does not tell, and the request for the masks.

        Args:
            request: As for :meth:`recommend`, as are the others.
            history: Item numbers, for what a person usually takes.
            before: Earlier requests.
        """
        encoder = without_cache(self.masks.encoder()) if self._config.encoder is not None else None
        if before and not isinstance(encoder, HearingEncoder):
            raise DataError(
                "before: found earlier requests, but this adapter's encoder reads one request alone. Leave them out, "
                "or train with the encoder 'catalogue'."
            )
        if before and (request is None or (isinstance(request, str) and not request.strip())):
            raise DataError("before: found earlier requests without a request. Give the last one as the request.")
        if not isinstance(encoder, HearingEncoder) or not isinstance(request, str) or not request.strip():
            return None, request
        check_texts([request, *before])
        heard, vector = encoder.listen(request, before, history)
        if not before and not heard.needs_history:
            return heard, request
        return heard, vector[None] if heard.parts else None  # a vector of zeros would be a request

    def _shares(self, before: Tensor, after: Tensor) -> dict[str, tuple[float, float]]:
        flags = self.catalogue.item_attributes
        means = (flags[items].float().mean(0).tolist() for items in (before, after))
        pairs = zip(self.catalogue.attributes, *means, strict=True)
        return {name: (old, new) for name, old, new in pairs if old or new}


def keep_card(folder: Path, new: Path) -> None:
    """Copy the README.md beside an adapter to a folder for a new version, so that a text of the user's stays."""
    card = folder / ADAPTER_FOLDER / CARD_FILE
    if card.is_file():
        (new / ADAPTER_FOLDER).mkdir(parents=True)
        shutil.copyfile(card, new / ADAPTER_FOLDER / CARD_FILE)


def evaluate_recommender(
    folder: str | os.PathLike[str],
    data: str | os.PathLike[str],
    stage: Stage = "test",
    protocol: Protocol | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    users: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, TrackResult]:
    """Evaluate a saved recommender against its frozen backbone.

    The test uses wordings that no generator is trained on, the validation those of training.

    Args:
        folder: The recommender's folder.
        data: The same data set as in training, by name or folder.
        stage: "test", or "validation".
        protocol: The kind of split; None: as in training.
        columns: What to read of the files; None: as in training. ``min_rating`` is always that of training.
        seed: Seed of the requests.
        users: Evaluate at most so many, drawn at random; None: all.
        say: Called with a line for each step.

    Raises:
        DataError: If the folder or the data cannot be used, the data has another catalogue, or ``protocol`` or
            ``columns.min_rating`` is not that of training: the training may have seen what it would be tested on.
    """
    if protocol is not None:
        check_protocol(protocol)
    recommender = RequestRecommender.load(folder)
    root = recommender_folder(folder)
    trained = _read_training(root)
    used = trained.get("protocol")
    if protocol is not None and used is not None and protocol != used:
        raise DataError(
            f"{root} was trained with the protocol {used!r}, found {protocol!r}: the training may have seen what it "
            f"would be tested on. Leave --protocol out, or train with --protocol {protocol}."
        )
    columns = _columns(columns, trained, root)
    say(f"reading {as_path(data).name}")
    loaded = load_own_data(data, protocol or used or "leave-one-out", columns, attributes=False)
    say(loaded.describe())
    _check_catalogue(root, recommender.catalogue, loaded)
    say(f"evaluating on the {stage} users")
    return evaluate_masks(recommender.masks, loaded, stage, seed, users)


def evaluate_masks(
    masks: RequestMaskModel, data: OwnData, stage: Stage, seed: int = 0, users: int | None = None
) -> dict[str, TrackResult]:
    """Evaluate masks against their frozen backbone, on the fastest device; arguments as in evaluate_recommender."""
    templates = TEST_TEMPLATES if stage == "test" else TRAIN_TEMPLATES
    length = int(masks.model.max_length)  # type: ignore[arg-type]
    device, scorer = device_of(masks), mask_scorer(masks)
    masks.to(fastest_device())
    try:
        return evaluate_stage(scorer, scorer, data, stage, templates, length, seed, users)
    finally:
        masks.to(device)


def tracks_as_dict(tracks: dict[str, TrackResult]) -> dict[str, Any]:
    """Return results as JSON values."""
    return {name: result.as_dict() for name, result in tracks.items()}


def _read_training(root: Path) -> dict[str, Any]:
    """Return the options of a training. The demo writes none, and splits by leave-one-out."""
    path = root / TRAINING_FILE
    if not path.exists():
        return {"protocol": "leave-one-out"}
    options = read_object(path, "the results of a training", _MAX_JSON_BYTES).get("options")
    if not isinstance(options, dict):
        raise DataError(f"{path}: expected the options of a training. Train again, or remove the file.")
    return options


def _columns(given: Columns | None, trained: dict[str, Any], root: Path) -> Columns:
    """Return what to read: as given, or else as in training, and in any case by the training's ``min_rating``."""
    try:
        used = Columns(**trained.get("columns", {}))
    except TypeError as error:
        raise DataError(f"{root / TRAINING_FILE}: columns: {error}. Train again, or remove the file.") from error
    if given is not None and given.min_rating not in (None, used.min_rating):
        raise DataError(
            f"{root} was trained with min_rating={used.min_rating}, found {given.min_rating}: other interactions would "
            "be the targets, and the training may have seen them. Leave min_rating out, or train with it."
        )
    return used if given is None else replace(given, min_rating=used.min_rating)


def _check_catalogue(root: Path, known: Catalogue, data: OwnData) -> None:
    found = data.catalogue
    same = known.item_ids == found.item_ids and known.attributes == found.attributes
    if not same or not torch.equal(known.item_attributes, found.item_attributes):
        raise DataError(
            f"{root / CATALOGUE_FILE} has {len(known)} items and {len(known.attributes)} attributes, {data.folder} "
            f"{len(found)} and {len(found.attributes)}, or others: give the data that it was trained on, and the same "
            f"columns; the folder {ADAPTER_FOLDER!r} belongs to that catalogue. Earlier versions cut attributes at "
            'spaces, or at "|" in str fields, where no attribute_separator was named.'
        )
