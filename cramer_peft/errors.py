"""Every error this library raises on purpose, so that callers can catch one base class.

Each class also derives from the built-in error that callers would expect without knowing us
(``ValueError``, ``ImportError`` …). What each one means and what to do is in ``docs/errors.md``.
"""

import importlib
import re
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cramer_peft.findings import Finding

_LENGTH = 8000
_PLACE = re.compile(r" \(docs/errors\.md#\w+\)")


class CramerError(Exception):
    """Base class of every error raised on purpose by this library.

    Its text ends in the place of the documentation that explains the class. What it quotes may come from a file,
    so a text that is longer than a page is cut in the middle.
    """

    def __str__(self) -> str:
        message = _PLACE.sub("", super().__str__())  # an error that quotes another names its own place alone
        if len(message) > _LENGTH:
            message = f"{message[: _LENGTH - 1000]} … ({len(message)} characters) … {message[-900:]}"
        return f"{message} (docs/errors.md#{type(self).__name__})"


class ConfigError(CramerError, ValueError):
    """A field of a configuration is impossible, alone or together with another one."""


class TargetModuleError(CramerError, ValueError):
    """The target modules do not exist in this model, or cannot be masked.

    ``findings`` lists what was found, one :class:`~cramer_peft.Finding` each.
    """

    findings: tuple["Finding", ...] = ()

    @classmethod
    def of(cls, message: str, *findings: "Finding") -> "TargetModuleError":
        """An error that carries its findings."""
        error = cls(message)
        error.findings = findings
        return error


class RequestError(CramerError, ValueError):
    """A request, its strength or its number of rows does not fit the adapter or the batch."""


class EncoderError(CramerError, ValueError):
    """A request encoder is unknown, misconfigured, or returned unusable vectors."""


class MissingExtraError(CramerError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class AdapterFileError(CramerError, ValueError):
    """An adapter or mask-state file is missing, corrupt, or does not fit."""


class BaseModelMismatchError(AdapterFileError):
    """A file was made for a base model whose masked weights differ from this one's."""


class EffectError(CramerError, RuntimeError):
    """A masked layer is not called, or does not move the output."""


class MergeError(CramerError, ValueError):
    """A request cannot be merged into a weight, or the model's state does not allow what was asked of a merged one."""


class CheckpointingError(CramerError, RuntimeError):
    """A masked layer was run again inside backward, after its request had ended."""


class UnsupportedError(CramerError, NotImplementedError):
    """A PEFT feature that this library does not offer (yet), refused rather than ignored."""


class DataError(CramerError, ValueError):
    """A data file or a value in it is not what the recommender tools expect."""


class DownloadError(CramerError, OSError):
    """A data set could not be fetched, or what arrived is not what was asked for."""


class MissingModelError(CramerError, OSError):
    """A pretrained model that was asked for by name or folder is not there, or cannot be read."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of this package brings it.

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
            raise  # installed, but one of its own dependencies is missing: its error is the better one
        raise MissingExtraError(
            f"{module!r} is not installed. It comes with an extra: pip install 'cramer-peft[{extra}]'."
        ) from error
