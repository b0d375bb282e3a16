"""One cell of a benchmark: its identity, its settings, and a digest of everything that determines its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cramer_peft
from cramer_peft.recsys.data.splits import Stage
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, backbone_options
from cramer_peft.recsys.training.request_batches import GeneratorOptions

Protocol = Literal["leave-one-out", "temporal"]
HoldOut = Literal["attributes", "users", "texts"]

PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal")
MEASURED = 1  # raise it when the evaluator gives other figures for the same ranker: stored results are then run again
# Fields that came later, with the values that mean what was done before: those leave the digests as they were.
_LATER_FIELDS = {"temperature_schedule": (None, "cosine"), "shared_masks": (None, False)}
_LATER_SETTINGS: dict[str, tuple[Any, ...]] = {"requests": (None,), "layers": (None,)}


@dataclass(frozen=True)
class DataSource:
    """A data set's location and the columns of its files.

    Attributes:
        data: A name that ``load_dataset`` knows, or a folder.
        title_column, attribute_column, attribute_separator: As for ``load_dataset``.
    """

    data: str
    title_column: str | None = None
    attribute_column: str | None = None
    attribute_separator: str | None = None

    @property
    def name(self) -> str:
        """The name in tables: that of the folder, without its path."""
        return Path(self.data).name


@dataclass(frozen=True)
class CellSettings:
    """The settings a cell is trained and measured with.

    Attributes:
        config: Fields of ``RequestMaskConfig`` that differ from the method's own.
        generator: Budget and losses, shared by all methods that learn.
        backbone: Training of the backbone; None: its default.
        encoder: Registered name of the request encoder; None: the configuration's default.
        hold_out: A fifth of the attributes, of the users, or of the words of stated requests, that the generator must
            not see.
        max_users: Most test users measured, drawn by the seed; None: all.
        language_model: Name or folder of the reranker's model; None: there is none.
        k: Length of the lists.
        requests: The weight of each source of training requests, for all methods that learn: "stated", "attributes",
            "catalogue", "history"; None: that of the study, or else sentences about attributes.
        layers: Layers of the backbone; None: as many as it has by default.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    backbone: BackboneOptions | None = None
    encoder: str | None = None
    hold_out: HoldOut | None = None
    max_users: int | None = None
    language_model: str | None = None
    k: int = 10
    requests: Mapping[str, float] | None = None
    layers: int | None = None


@dataclass(frozen=True)
class RealLanguage:
    """A study of requests that people wrote in film dialogues, in place of simulated requests.

    Attributes:
        dialogues: File of the dialogues, as ``read_redial`` takes it.
        stage: The dialogues measured: "validation", on which choices are made, or "test", to be looked at once.
    """

    dialogues: str
    stage: Stage = "validation"

    @property
    def name(self) -> str:
        """The name in tables and file names."""
        return f"real language, {self.stage}"


@dataclass(frozen=True)
class Transfer:
    """A study of a generator that is trained on the cell's data and used on other data.

    Attributes:
        target: The other data.
        stage: The stage whose next items are measured.
        full: Whether to compare with a generator trained on the target alone with all steps.
    """

    target: DataSource
    stage: Stage = "validation"
    full: bool = False

    @property
    def name(self) -> str:
        """The name in tables and file names."""
        return f"transfer to {self.target.name}, {self.stage}"


@dataclass(frozen=True)
class OwnRequests:
    """A study of requests that belong to a next item, in place of simulated ones.

    Attributes:
        source: "stated": what the data's field ``request`` says. "history": the texts of the three items before, the
            paper's own construction.
        stage: The stage whose next items are measured.
        probe: An attribute whose share of the lists is measured under fixed sentences; None: there is none.
    """

    source: Literal["stated", "history"] = "stated"
    stage: Stage = "test"
    probe: str | None = None

    @property
    def name(self) -> str:
        """The name in tables and file names."""
        return f"{self.source} requests, {self.stage}"


Study = RealLanguage | Transfer | OwnRequests


@dataclass(frozen=True)
class Cell:
    """One method on one data set, split, backbone and seed.

    Attributes:
        source: The data.
        protocol: The split.
        backbone: Name of the backbone.
        method: A key of ``METHODS``.
        seed: Seed of everything random.
        variant: Name of an ablation or of a hold-out; None: the method as it is.
        settings: Training and measuring.
        study: A study that replaces the tracks; None: the tracks are measured.
    """

    source: DataSource
    protocol: Protocol
    backbone: str
    method: str
    seed: int
    variant: str | None = None
    settings: CellSettings = field(default_factory=CellSettings)
    study: Study | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that name the cell in tables and file names."""
        return {
            "data": self.source.name,
            "protocol": self.protocol,
            "backbone": self.backbone,
            "method": self.method,
            "seed": self.seed,
            "variant": self.variant,
            **({} if self.study is None else {"study": self.study.name}),
        }

    @property
    def name(self) -> str:
        """A file name, the same in every run and different for every identity."""
        return file_name(value for value in self.identity.values() if value is not None)

    @property
    def kind(self) -> str:
        """The group of cells of similar cost: the method, with its study if it has one."""
        return self.method if self.study is None else f"{self.study.name}: {self.method}"

    @property
    def with_backbones(self) -> tuple[Cell, ...]:
        """The cells whose backbones this one needs: itself, and one of the target's data in a transfer."""
        if not isinstance(self.study, Transfer):
            return (self,)
        return self, replace(self, source=self.study.target, method="frozen", variant=None, study=None)

    @property
    def backbone_name(self) -> str:
        """Folder name of the backbone, which other cells share."""
        depth = () if self.settings.layers is None else (f"{self.settings.layers} layers",)
        return file_name((self.source.name, self.protocol, self.backbone, *depth, self.seed))


def file_name(parts: Iterable[object]) -> str:
    """Join parts to a file name of plain characters.

    A hash is added if a character had to be replaced, so that different parts never get the same name.
    """
    plain = "__".join(str(part) for part in parts)
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain)
    return slug if slug == plain.replace(" ", "-") else f"{slug}-{_sha(plain)[:8]}"


def backbone_digest(cell: Cell, data: str) -> str:
    """Return the digest of everything that determines the cell's backbone.

    Args:
        cell: The cell.
        data: Digest of the data's files.
    """
    identity = {key: cell.identity[key] for key in ("data", "protocol", "backbone", "seed")}
    options = asdict(cell.settings.backbone or backbone_options(cell.backbone))
    if cell.settings.layers is not None:
        options["layers"] = cell.settings.layers
    return _sha(_canonical([identity, _columns(cell.source), data, options, cramer_peft.__version__]))


def cell_digest(cell: Cell, data: str, config: Mapping[str, Any] | None = None, study: str | None = None) -> str:
    """Return the digest of everything that determines the cell's result.

    A stored result with another digest is out of date.

    Args:
        cell: The cell.
        data: Digest of the data's files.
        config: The masks' whole configuration, so that changed defaults count, too.
        study: Digest of the cell's study; None: it has none.
    """
    settings = _without(asdict(cell.settings), _LATER_SETTINGS)
    config = None if config is None else _without(config, _LATER_FIELDS)
    wordings = [TRAIN_TEMPLATES, TEST_TEMPLATES]
    parts = [cell.identity, settings, config, wordings, MEASURED, backbone_digest(cell, data)]
    return _sha(_canonical(parts if study is None else [*parts, study]))


def study_digest(study: Study, data: str) -> str:
    """Return the digest of everything that determines a study.

    Args:
        study: The study.
        data: Digest of its file, or of the target's files.
    """
    settings = asdict(study)
    for place in ("dialogues", "target"):  # a path; the contents are in ``data``
        settings.pop(place, None)
    columns = _columns(study.target) if isinstance(study, Transfer) else []
    return _sha(_canonical([study.name, settings, columns, data]))


def data_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the atomic files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".inter", ".item"))
    return _sha("".join(path.name + hashlib.sha256(path.read_bytes()).hexdigest() for path in files))


def _without(values: Mapping[str, Any], later: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not (name in later and value in later[name])}


def _columns(source: DataSource) -> list[str | None]:
    return [source.title_column, source.attribute_column, source.attribute_separator]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
