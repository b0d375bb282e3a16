"""The errors that this library raises on purpose; the page "Errors" of the documentation lists them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import Enum
from types import ModuleType

__all__ = [
    "AdapterFileError",
    "BaseModelMismatchError",
    "CheckpointingError",
    "ConfigError",
    "CramerError",
    "DataError",
    "DownloadError",
    "EffectError",
    "EncoderError",
    "Finding",
    "FindingKind",
    "MergeError",
    "MissingExtraError",
    "MissingModelError",
    "RequestError",
    "TargetModuleError",
    "UnsupportedError",
    "require",
]

_LENGTH = 8000


class FindingKind(str, Enum):
    """The kinds of findings; each has a section of its own in ``docs/validation.md``."""

    # Fatal: injection raises.
    ALREADY_MASKED = "already-masked"
    NOTHING_MATCHES = "nothing-matches"
    UNSUPPORTED_MODULE = "unsupported-module"
    READ_BY_PARENT = "read-by-parent"
    NESTED_TARGET = "nested-target"
    UNKNOWN_PART = "unknown-part"
    OTHER_BASE_MODEL = "other-base-model"
    ENCODER = "encoder"
    # Notes: injection goes on.
    UNMATCHED_NAME = "unmatched-name"
    TIED_WEIGHTS = "tied-weights"
    FUSED_PATH = "fused-path"
    ROWS_ELSEWHERE = "rows-elsewhere"
    NOT_MERGEABLE = "not-mergeable"
    GRADIENT_CHECKPOINTING = "gradient-checkpointing"

    @property
    def fatal(self) -> bool:
        """True if injection would raise."""
        return self in _FATAL


_FATAL = {
    FindingKind.ALREADY_MASKED,
    FindingKind.NOTHING_MATCHES,
    FindingKind.UNSUPPORTED_MODULE,
    FindingKind.READ_BY_PARENT,
    FindingKind.NESTED_TARGET,
    FindingKind.UNKNOWN_PART,
    FindingKind.OTHER_BASE_MODEL,
    FindingKind.ENCODER,
}


@dataclass(frozen=True)
class Finding:
    """One thing that the check of a model and a configuration found, before anything was touched.

    Attributes:
        kind: The kind of finding.
        message: The problem, what was expected, and what to do.
        module: Name of the module concerned, or None if it is the whole model.
    """

    kind: FindingKind
    message: str
    module: str | None = None

    @property
    def fatal(self) -> bool:
        """True if injection would raise."""
        return self.kind.fatal

    @property
    def docs(self) -> str:
        """Page and anchor of the documentation that explains it."""
        return f"validation.md#{self.kind.value}"

    def __str__(self) -> str:
        where = "" if self.module is None else f"{self.module or 'the model itself'}: "
        return f"[{'fatal' if self.fatal else 'note'}: {self.kind.value}] {where}{self.message}"


class CramerError(Exception):
    """Base class of every error raised on purpose by this library.

    Its text says what was found, what was expected and what to do. A text longer than a page is cut in the middle,
    because it may quote from a file of any size.
    """

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) > _LENGTH:
            message = f"{message[: _LENGTH - 1000]} … ({len(message)} characters) … {message[-900:]}"
        return message


class ConfigError(CramerError, ValueError):
    """A field of a configuration, or a combination of fields, is impossible."""


class TargetModuleError(CramerError, ValueError):
    """The target modules do not exist in this model, or cannot be masked.

    ``findings`` lists one :class:`~cramer_peft.Finding` for each problem.
    """

    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, message: str, *findings: Finding) -> TargetModuleError:
        """Return an error that carries its findings."""
        error = cls(message)
        error.findings = findings
        return error


class RequestError(CramerError, ValueError):
    """A request, its strength or its number of rows does not fit the adapter or the batch."""


class EncoderError(CramerError, ValueError):
    """A request encoder is unknown, misconfigured, or returned unusable vectors."""


class MissingExtraError(CramerError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class AdapterFileError(CramerError, ValueError):
    """An adapter or mask-state file is missing, corrupt, or does not fit."""


class BaseModelMismatchError(AdapterFileError):
    """A file was made for a base model whose masked weights differ from this one's."""


class EffectError(CramerError, RuntimeError):
    """A masked layer is not called, or does not move the output."""


class MergeError(CramerError, ValueError):
    """A request cannot be merged into a weight, or the call is not possible while a request is merged."""


class CheckpointingError(CramerError, RuntimeError):
    """A masked layer was run again inside backward, after its request had ended."""


class UnsupportedError(CramerError, NotImplementedError):
    """A feature of PEFT or torch that this library does not offer, refused rather than ignored."""


class DataError(CramerError, ValueError):
    """A data file or a value in it is not what the recommender tools expect."""


class DownloadError(CramerError, OSError):
    """A data set, or a folder on the hub, could not be downloaded, or the download is not the expected one."""


class MissingModelError(CramerError, OSError):
    """A pretrained model, given by name or folder, does not exist or cannot be read."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or raise an error that names the extra of this package that installs it.

    Args:
        module: Importable name, for example ``"pandas"``.
        extra: The extra of ``cramer-peft`` that depends on it, for example ``"demo"``.

    Raises:
        MissingExtraError: If ``module`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is installed, but something that it needs is not: its own error says more
        raise MissingExtraError(
            f"{module!r} is not installed. It comes with an extra: pip install 'cramer-peft[{extra}]'."
        ) from error
