"""One cell of a benchmark: what determines its result, and the two files that hold it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import cramer_peft
from cramer_peft.errors import AdapterFileError, DataError
from cramer_peft.recsys.backbones.backbone import HEAD_BIAS
from cramer_peft.recsys.data.split import Stage
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import backbone_options
from cramer_peft.recsys.training.generator_training import BackboneOptions, GeneratorOptions
from cramer_peft.storage import read_json, write_json, write_safetensors

Protocol = Literal["leave-one-out", "temporal"]
HoldOut = Literal["attributes", "users"]
Status = Literal["done", "empty", "failed"]

PROTOCOLS: tuple[Protocol, ...] = ("leave-one-out", "temporal")
MEASURED = 1  # raise it when measure.py gives other figures for the same ranker
CELLS, BACKBONES = "cells", "backbones"


@dataclass(frozen=True)
class DataSource:
    """Where a data set is, and how its files are read.

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
        """What tables call it: the folder's name, never its place."""
        return Path(self.data).name


@dataclass(frozen=True)
class CellSettings:
    """How a cell is trained and measured.

    Attributes:
        config: Fields of ``RequestMaskConfig`` that differ from the method's own.
        generator: Budget and losses, shared by all methods that learn.
        backbone: How the backbone is trained; None: as it is by default.
        encoder: Registered name of the request encoder; None: the configuration's default.
        hold_out: What the generator must not see: a fifth of the attributes, or of the users.
        max_users: Most test users measured, drawn by the seed; None: all.
        language_model: Name or folder of the reranker's model; None: there is none.
        k: Length of the lists.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    backbone: BackboneOptions | None = None
    encoder: str | None = None
    hold_out: HoldOut | None = None
    max_users: int | None = None
    language_model: str | None = None
    k: int = 10


@dataclass(frozen=True)
class RealLanguage:
    """Asks what people said in film dialogues, instead of simulated requests.

    Attributes:
        dialogues: File of the dialogues, as ``read_redial`` takes it.
        stage: Whose dialogues are measured: those that choices were made on, or those to be looked at once.
    """

    dialogues: str
    stage: Stage = "validation"

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"real language, {self.stage}"


@dataclass(frozen=True)
class Transfer:
    """Uses what was learned on the cell's data on other data.

    Attributes:
        target: The other data.
        stage: Whose next items are measured.
        same_items: Whether equal titles are the same item in both.
        full: Whether a generator is trained on the target alone with all steps, to compare with.
    """

    target: DataSource
    stage: Stage = "validation"
    same_items: bool = False
    full: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"transfer to {self.target.name}, {self.stage}"


@dataclass(frozen=True)
class Cell:
    """One method on one data set, split, backbone and seed.

    Attributes:
        source: The data.
        protocol: How it is split.
        backbone: Name of the backbone.
        method: A key of ``METHODS``.
        seed: Of everything that is random.
        variant: What is changed, for an ablation; None for the method as it is.
        settings: How it is trained and measured.
        study: What is measured instead of the tracks; None: the tracks.
    """

    source: DataSource
    protocol: Protocol
    backbone: str
    method: str
    seed: int
    variant: str | None = None
    settings: CellSettings = field(default_factory=CellSettings)
    study: RealLanguage | Transfer | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What tables and file names say of it."""
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
        """A name for its files: the same in every run, another for every identity."""
        return file_name(value for value in self.identity.values() if value is not None)

    @property
    def kind(self) -> str:
        """What its cost is like: the method's, or that of the study with it."""
        return self.method if self.study is None else f"{self.study.name}: {self.method}"

    @property
    def backbone_name(self) -> str:
        """A name for the folder of the backbone that it shares with other cells."""
        return file_name((self.source.name, self.protocol, self.backbone, self.seed))


def file_name(parts: Any) -> str:
    """Parts joined to a file name of plain characters; what could not be kept is told apart by a hash."""
    plain = "__".join(str(part) for part in parts)
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain)
    return slug if slug == plain.replace(" ", "-") else f"{slug}-{_sha(plain)[:8]}"


def backbone_digest(cell: Cell, data: str) -> str:
    """Digest of all that determines the cell's backbone.

    Args:
        cell: The cell.
        data: Digest of the data's files.
    """
    identity = {key: cell.identity[key] for key in ("data", "protocol", "backbone", "seed")}
    options = asdict(cell.settings.backbone or backbone_options(cell.backbone))
    return _sha(_canonical([identity, _columns(cell.source), data, options, HEAD_BIAS, _version()]))


def cell_digest(cell: Cell, data: str, config: Mapping[str, Any] | None = None, study: str | None = None) -> str:
    """Digest of all that determines the cell's result; a stored result with another one is out of date.

    Args:
        cell: The cell.
        data: Digest of the data's files.
        config: The masks' configuration in full, so that changed defaults count, too.
        study: Digest of what the cell's study is made of; None where it has none.
    """
    settings = asdict(cell.settings)
    wordings = [TRAIN_TEMPLATES, TEST_TEMPLATES]
    parts = [cell.identity, settings, config, wordings, MEASURED, backbone_digest(cell, data)]
    return _sha(_canonical(parts if study is None else [*parts, study]))


def study_digest(study: RealLanguage | Transfer, data: str) -> str:
    """Digest of all that determines a study.

    Args:
        study: The study.
        data: Digest of its file, or of the target's files.
    """
    settings = asdict(study)
    for place in ("dialogues", "target"):
        settings.pop(place, None)
    columns = _columns(study.target) if isinstance(study, Transfer) else []
    return _sha(_canonical([study.name, settings, columns, data]))


def _columns(source: DataSource) -> list[str | None]:
    return [source.title_column, source.attribute_column, source.attribute_separator]


def _version() -> str:
    return cramer_peft.__version__


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=list)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def data_digest(folder: Path) -> str:
    """SHA-256 of the atomic files in a folder, names and contents."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".inter", ".item"))
    return _sha("".join(path.name + hashlib.sha256(path.read_bytes()).hexdigest() for path in files))


@dataclass(frozen=True, eq=False)
class CellResult:
    """What became of a cell.

    Attributes:
        cell: Its identity.
        digest: Of what determined it.
        status: "done"; "empty": it could not be run here, such as for want of weights; "failed": an error.
        reason: Why it is not done.
        figures: The summary, as in the JSON file: users, trainable, seconds, tracks, strength …
        values: "track/metric" → float32 (users,), NaN where a user does not count.
    """

    cell: Mapping[str, Any]
    digest: str
    status: Status = "done"
    reason: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What the JSON file holds."""
        head = {"cell": dict(self.cell), "digest": self.digest, "status": self.status, "reason": self.reason}
        return {**head, **self.figures}

    def save(self, output: Path, name: str) -> None:
        """Write ``cells/NAME.safetensors``, then ``cells/NAME.json``, each whole or not at all."""
        folder = output / CELLS
        folder.mkdir(parents=True, exist_ok=True)
        values = {key: value.float() for key, value in self.values.items()}
        write_safetensors(folder / f"{name}.safetensors", values, {"digest": self.digest})
        write_json(folder / f"{name}.json", self.document())

    @classmethod
    def load(cls, output: Path, name: str) -> CellResult:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: If a file is missing or cannot be read, or the two are not of one run.
        """
        path = output / CELLS / f"{name}.json"
        try:
            document = read_json(path)
            head = {key: document.pop(key) for key in ("cell", "digest", "status", "reason")}
            values = load_file(path.with_suffix(".safetensors"))
        except (AdapterFileError, KeyError, OSError, SafetensorError) as error:
            raise DataError(f"{path}: no readable result of a cell ({error}). Run it again.") from error
        return cls(**head, figures=document, values=values)


def stored_result(output: Path, cell: Cell, digest: str) -> CellResult | None:
    """The cell's finished result, or None if it has to be run: nothing there, out of date, damaged, not done."""
    try:
        found = CellResult.load(output, cell.name)
    except DataError:
        return None
    return found if found.digest == digest and found.status == "done" else None


def with_generator(cell: Cell, **changes: Any) -> Cell:
    """The cell with other generator options."""
    return replace(cell, settings=replace(cell.settings, generator=replace(cell.settings.generator, **changes)))
