"""What a look at a model and a configuration can find, before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


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
    # To know: injection goes on.
    TIED_WEIGHTS = "tied-weights"
    FUSED_PATH = "fused-path"
    ROWS_ELSEWHERE = "rows-elsewhere"
    NOT_MERGEABLE = "not-mergeable"
    GRADIENT_CHECKPOINTING = "gradient-checkpointing"

    @property
    def fatal(self) -> bool:
        """Whether injection would raise."""
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
    """One thing that was found.

    Attributes:
        kind: What kind of thing.
        message: What was found, what was expected and what to do.
        module: Name of the module concerned, or None where it is the whole.
    """

    kind: FindingKind
    message: str
    module: str | None = None

    @property
    def fatal(self) -> bool:
        """Whether injection would raise."""
        return self.kind.fatal

    @property
    def docs(self) -> str:
        """Page and anchor of the documentation that explains it."""
        return f"validation.md#{self.kind.value}"

    def __str__(self) -> str:
        where = "" if self.module is None else f"{self.module}: "
        return f"[{'fatal' if self.fatal else 'note'}: {self.kind.value}] {where}{self.message} (docs: {self.docs})"
