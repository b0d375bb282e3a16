"""The limits of the server, each with its help text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from cramer_peft.errors import ConfigError


def _limit(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What the server takes and for how long.

    Raises:
        ConfigError: If a limit is not above 0.
    """

    max_batch: int = _limit(32, "Most calls that the model answers at once.")
    max_wait: float = _limit(0.002, "Seconds that a call waits for others to share its batch.")
    max_queue: int = _limit(256, "Most calls that wait; further ones get 503.")
    timeout: float = _limit(5.0, "Seconds after which a call that still waits gets 504.")
    body_timeout: float = _limit(5.0, "Seconds in which a body must have arrived.")
    body_bytes: int = _limit(64 * 1024, "Largest body.")
    text_length: int = _limit(1000, "Most characters of a request.")
    before_length: int = _limit(20, "Most earlier requests of a conversation.")
    history_length: int = _limit(200, "Most items of a history.")
    max_k: int = _limit(100, "Longest list of recommendations.")
    cache_entries: int = _limit(2048, "Most texts whose mask states are kept.")
    max_connections: int = _limit(1024, "Most connections; further ones get 503.")
    shutdown_seconds: float = _limit(10.0, "Seconds for calls to be answered after SIGTERM.")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise ConfigError(f"{each.name}: found {value!r}, expected a number above 0. {each.metadata['help']}")
