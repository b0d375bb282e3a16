"""A recommender that answers requests, as a folder: frozen backbone, adapter, catalogue."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, load_request_masks
from cramer_peft.errors import DataError
from cramer_peft.recsys.backbones import load_backbone, save_backbone
from cramer_peft.recsys.backbones.kinds import BACKBONE_FOLDER
from cramer_peft.recsys.backbones.weights import WEIGHT_NAMES
from cramer_peft.recsys.data.catalogue import CATALOGUE_FILE, Catalogue
from cramer_peft.recsys.data.catalogue_digest import check_count, check_digest, write_digest
from cramer_peft.recsys.data.histories import pad_histories, whole_number
from cramer_peft.recsys.data.own_data import Columns, OwnData, Protocol, check_protocol, load_own_data
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.data.tables import Tables, data_name
from cramer_peft.recsys.devices import brought_to, device_of, fastest_device
from cramer_peft.recsys.evaluation.batches import rows_together
from cramer_peft.recsys.evaluation.metrics import finite_scores
from cramer_peft.recsys.evaluation.results import TrackResult, evaluate_stage
from cramer_peft.recsys.evaluation.users import BATCH, mask_scorer
from cramer_peft.recsys.folder import ADAPTER_FOLDER, CARD_FILE, keep_card, read_training, trained_columns
from cramer_peft.recsys.hub import FILES, files_with_results, recommender_card, recommender_folder
from cramer_peft.recsys.listening import Listener
from cramer_peft.recsys.masks import describe_items
from cramer_peft.recsys.new_items import check_extensible, checked_embeddings, read_new_items, with_new_items
from cramer_peft.recsys.reading import as_path
from cramer_peft.recsys.requests.heard import Heard
from cramer_peft.recsys.requests.request_encoders import save_words, stored_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.rows import Rows, best_lists
from cramer_peft.storage import new_version, push_folder, write_model_card


@dataclass(frozen=True)
class Answer:
    """A list of recommendations, best first, beside the list without the request."""

    items: list[int]
    frozen_items: list[int]
    shares: dict[str, tuple[float, float]]  # of each attribute: without the request, with it; if either is not 0
    heard: Heard | None = None  # what was understood; None if the encoder does not tell
    scores: list[float] = field(default_factory=list)  # of the items

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
        return self.masks.adapter().config

    def _extends(self, root: Path) -> bool:
        """Return True if the recommender in a folder knows the first of these items and no others."""
        path = root / CATALOGUE_FILE
        there = Catalogue.load(path).item_ids if path.is_file() else None
        return there is not None and self.catalogue.item_ids[: len(there)] == there

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        backbone: Any = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = True,
    ) -> RequestRecommender:
        """Load a folder that :func:`save_backbone` and :meth:`save` wrote, or :meth:`push_to_hub` pushed.

        Args:
            folder: The folder itself, or the adapter's folder in it. If there is none: a name on the hub,
                ``"user/name"``, whose files lie in the hub's cache on this machine.
            backbone: A recommender of your own that :meth:`save` did not write; None: the one in the folder.
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
        for name in (CATALOGUE_FILE, ADAPTER_FOLDER, *([BACKBONE_FOLDER] if backbone is None else [])):
            if not (root / name).exists():
                raise DataError(
                    f"{folder} is not a recommender folder: {name} is missing. Give the folder that "
                    "`cramer-peft train` or `cramer-peft demo` wrote, or the adapter folder in it."
                )
        catalogue = Catalogue.load(root / CATALOGUE_FILE)
        backbone = load_backbone(root / BACKBONE_FOLDER, catalogue) if backbone is None else backbone
        masks = load_request_masks(backbone, root / ADAPTER_FOLDER)
        check_digest(root / ADAPTER_FOLDER, catalogue)
        named = masks.adapter().config.encoder
        encoder = stored_encoder(named, catalogue, backbone, root / ADAPTER_FOLDER)
        if encoder is not None:
            masks.set_encoder(encoder)
        describe_items(masks, catalogue)
        return cls(masks, catalogue, root)

    def model_card(self, name: str = "user/name", **hub: Any) -> str:
        """Return a card, as Markdown, that says what is heard and was measured; arguments as for :meth:`load`."""
        return self._card(files_with_results(self.folder, self.masks), name, **hub)

    def _card(self, results: Sequence[Path], name: str, **hub: Any) -> str:
        own = [] if hasattr(self.masks.model, "save_pretrained") else ["backbone=backbone"]
        place = [repr(name), *own, *(f"{key}={value!r}" for key, value in hub.items() if value)]
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
            folder, results = Path(name), files_with_results(self.folder, self.masks)
            if self.catalogue.described_items is None and hasattr(self.masks.model, "save_pretrained"):
                # one of your own has none; with added items the rest is saved by ``save``
                save_backbone(cast(Any, copy.deepcopy(self.masks).unload()), folder, self.catalogue)
            self.save(folder)
            card = [] if self.folder is None else [self.folder / CARD_FILE]
            for path in (*card, *results):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
            write_model_card(folder, self._card(results, repo_id, revision=revision, subfolder=subfolder))
            return push_folder(folder, repo_id, FILES, revision, subfolder, private, token)

    def add_items(
        self, items: Any, embeddings: Tensor | None = None, columns: Columns | None = None
    ) -> RequestRecommender:
        """Return a recommender that knows new items, too, after the others; nothing is trained.

        This one stays as it is, and the new one shares no memory with it. The other items' numbers, embeddings,
        features and values stay the same. A request is described by the items known in training alone, so its vector
        stays the same, too. :meth:`save` writes the extended backbone beside the adapter.

        Args:
            items: The new items: a data frame or file as :class:`~cramer_peft.recsys.Tables` takes it, with the
                columns of training, or a catalogue. Their attributes must be among those of the catalogue.
            embeddings: Their embeddings in the backbone, (items, width) floating point. None: predicted from their
                texts, see :func:`~cramer_peft.recsys.new_items.predicted_embeddings`.
            columns: What to read of a table; None: as in training, or by the usual names if ``folder`` is None.

        Raises:
            DataError: If an item is known already, an attribute is not, the table cannot be read, or the embeddings are
                of another shape or not finite.
            UnsupportedError: If the backbone's item table cannot be extended, or the adapter has a gate for each item.
        """
        if not isinstance(items, Catalogue):
            if columns is None and self.folder is not None:
                columns = trained_columns(None, read_training(self.folder), self.folder)
            items = read_new_items(items, self.catalogue, columns or Columns())
        if not len(items):
            return self
        grown = self.catalogue.with_items(items)
        check_extensible(self.masks)
        vectors = checked_embeddings(self.masks, grown, embeddings)
        return RequestRecommender(with_new_items(self.masks, grown, vectors), grown)

    @overload
    def recommend(
        self,
        history: Sequence[int],
        request: str | None = None,
        strength: float = 1.0,
        k: int = 10,
        before: Sequence[str] = (),
        candidates: Collection[int] | None = None,
        exclude: Collection[int] = (),
    ) -> Answer: ...

    @overload
    def recommend(
        self,
        history: Sequence[Sequence[int]],
        request: str | Sequence[str | None] | None = None,
        strength: float = 1.0,
        k: int = 10,
        before: Sequence[str] | Sequence[Sequence[str]] = (),
        candidates: Collection[int] | Sequence[Collection[int]] | None = None,
        exclude: Collection[int] | Sequence[Collection[int]] = (),
    ) -> list[Answer]: ...

    def recommend(
        self,
        history: Any,
        request: Any = None,
        strength: float = 1.0,
        k: int = 10,
        before: Any = (),
        candidates: Any = None,
        exclude: Any = (),
    ) -> Answer | list[Answer]:
        """Recommend the k best unseen items under a request, beside those without it, for one history or for many.

        A row of many gets the list that it gets alone, unless two scores are as near as float32 rounds: torch computes
        a batch and a single row in another order (1e-5 of a score).

        Args:
            history: Item indices, oldest first; or a list of histories, which gives a list of answers.
            request: The request; None or blank for none. For many histories: one for all, or a list with one for each.
            strength: Strength of the request.
            k: Length of the list; it is shorter if fewer items are unseen.
            before: Earlier requests of the same conversation, oldest first: ``request`` may refer to them, as "less of
                that" does, and what they ask for still counts, the longer ago the less. One list, or one for each
                history.
            candidates: Indices of the items that may be recommended, for all rows or a collection for each; None: all.
            exclude: Indices of items that may not, likewise. Items of the history never are.

        Raises:
            DataError: If a history is empty, an item is unknown, nothing is left to recommend, k is below 1, or a score
                is not finite, as with a huge strength; or if ``before`` comes without a request, or to an encoder that
                reads one request alone. It names the row.
            RequestError: If the request or its strength is of another kind, or there is not one for each row.
        """
        k = whole_number("k", k)
        rows = Rows.of(history, request, len(self.catalogue), before, candidates, exclude)
        size = rows_together(len(self.catalogue), BATCH)
        answers = [answer for piece in rows.pieces(size) for answer in self._answers(piece, strength, k)]
        return answers[0] if rows.first is None else answers

    def _answers(self, rows: Rows, strength: float, k: int) -> list[Answer]:
        barred = rows.barred(len(self.catalogue), k)
        frozen = best_lists(self.scores(rows.histories), barred, k)
        heard, vectors = self.listened(rows)
        asked = frozen
        if any(vector is not None for vector in vectors):
            asked = best_lists(self.scores(rows.histories, vectors, strength), barred, k)
        answers = []
        for row, vector in enumerate(vectors):
            items, scores = frozen if vector is None else asked
            shares = self._shares(torch.tensor(frozen[0][row]), torch.tensor(items[row]))
            answers.append(Answer(items[row], frozen[0][row], shares, heard[row], scores[row]))
        return answers

    def listened(self, rows: Rows) -> tuple[list[Heard | None], list[Tensor | None]]:
        """Return what is understood of each row's request, and the vectors (request_dim,), None if one asks nothing."""
        found: list[tuple[Heard | None, Tensor | None]] = []
        for row, (request, history) in enumerate(zip(rows.requests, rows.histories, strict=True)):
            with rows.naming("request", row):
                found.append(self.listener.vector(request, history.tolist(), rows.earlier(row)))
        return [heard for heard, _ in found], [vector for _, vector in found]

    def scores(
        self, histories: Sequence[Tensor], vectors: Sequence[Tensor | None] | None = None, strength: float = 1.0
    ) -> Tensor:
        """Return the scores of all items after each history, (rows, items) on the CPU.

        Args:
            histories: Item indices, (n,) int64 each.
            vectors: Of :attr:`listener`, (request_dim,) or None for each row; None: of no row.
            strength: Strength of the requests.

        Raises:
            DataError: If a score is not finite.
            RequestError: If a vector or the strength is of another kind.
        """
        request = None if vectors is None or all(vector is None for vector in vectors) else list(vectors)
        with torch.no_grad():
            inputs = brought_to(self.masks.model, pad_histories(histories, int(self.masks.model.max_length)))  # type: ignore[arg-type]
            scores: Tensor = self.masks(inputs, request=request, request_strength=strength)
        return finite_scores(scores).cpu()

    @cached_property
    def listener(self) -> Listener:
        """Reads requests, and keeps what it read of a text."""
        return Listener(self.masks)

    def hear(self, request: str, before: Sequence[str] = ()) -> Heard | None:
        """Return what is understood of a request; None if the encoder does not tell."""
        found = self.listener.hear(request, (), before)
        return None if found is None else found[0]

    def _shares(self, before: Tensor, after: Tensor) -> dict[str, tuple[float, float]]:
        flags = self.catalogue.item_attributes
        means = (flags[items].float().mean(0).tolist() for items in (before, after))
        pairs = zip(self.catalogue.attributes, *means, strict=True)
        return {name: (old, new) for name, old, new in pairs if old or new}


def evaluate_recommender(
    folder: str | os.PathLike[str],
    data: str | os.PathLike[str] | Tables,
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
        data: The same data set as in training, by name, folder or tables.
        stage: "test", or "validation".
        protocol: The kind of split; None: as in training.
        columns: What to read of the tables; None: as in training. ``min_rating`` is always that of training, and
            columns that ``data`` names itself count more.
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
    root = recommender.folder
    assert root is not None  # it was loaded
    trained = read_training(root)
    used = trained.get("protocol")
    if protocol is not None and used is not None and protocol != used:
        raise DataError(
            f"{root} was trained with the protocol {used!r}, found {protocol!r}: the training may have seen what it "
            f"would be tested on. Leave --protocol out, or train with --protocol {protocol}."
        )
    columns = trained_columns(columns, trained, root)
    say(f"reading {data_name(data)}")
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


def _check_catalogue(root: Path, known: Catalogue, data: OwnData) -> None:
    found = data.catalogue
    same = known.item_ids == found.item_ids and known.attributes == found.attributes
    if not same or not torch.equal(known.item_attributes, found.item_attributes):
        raise DataError(
            f"{root / CATALOGUE_FILE} has {len(known)} items and {len(known.attributes)} attributes, {data.name} "
            f"{len(found)} and {len(found.attributes)}, or others: give the data that it was trained on, and the same "
            f"columns; the folder {ADAPTER_FOLDER!r} belongs to that catalogue. Earlier versions cut attributes at "
            'spaces, or at "|" in str fields, where no attribute_separator was named.'
        )
