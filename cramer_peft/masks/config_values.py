"""Checks of a configuration's values, whether a person or a file gives them."""

from __future__ import annotations

import sys
from typing import Any

from cramer_peft.errors import ConfigError

LARGEST = 3.4028234663852886e38  # the largest number in float32, in which masks are made
SKETCH_LENGTH = 19  # numbers that tell row features


def is_int(value: object) -> bool:
    """Return True for a whole number that is no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: object) -> bool:
    """Return True for a number that float32 can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return value == value and abs(value) <= LARGEST


def is_layout(value: object) -> bool:
    """Return True for the shapes of masks by entry."""
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(shape, list)
        and len(shape) <= 2
        and all(is_int(n) and n > 0 for n in shape)
        for name, shape in value.items()
    )


def check_outputs(outputs: Any, features: Any, fingerprints: Any) -> None:
    """Check the types of ``target_outputs``, ``row_features`` and ``row_fingerprints``."""
    for name, value in (("target_outputs", outputs), ("row_features", features)):
        if value is not None and not (isinstance(value, (list, dict)) and all(isinstance(n, str) for n in value)):
            raise ConfigError(f"{name} must be a list of names, or a dictionary by name, found {value!r}.")
    for name, options in outputs.items() if isinstance(outputs, dict) else ():
        if not isinstance(options, dict) or not all(_is_option(key, value) for key, value in options.items()):
            raise ConfigError(
                f"target_outputs: found {options!r} for {name!r}, expected a dictionary with 'field' and 'candidates' "
                "as texts, 'in_place' as true or false and 'features' as a whole number above 0, each if needed."
            )
    for name, width in features.items() if isinstance(features, dict) else ():
        if width is not None and not (is_int(width) and width > 0):
            raise ConfigError(f"row_features: found {width!r} for {name!r}, expected a number of features, or None.")
    if fingerprints is not None and not _are_fingerprints(fingerprints):
        raise ConfigError(
            f"row_fingerprints: found {fingerprints!r}, expected what set_row_features fills in: {SKETCH_LENGTH} "
            "finite numbers by name."
        )


def _is_option(key: object, value: object) -> bool:
    if key == "features":
        return is_int(value) and value > 0  # type: ignore[operator]
    if key == "in_place":
        return isinstance(value, bool)
    return key in ("field", "candidates") and isinstance(value, str)


def _are_fingerprints(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(sums, list)
        and len(sums) == SKETCH_LENGTH
        and all(isinstance(n, (int, float)) and abs(n) <= sys.float_info.max for n in sums)
        for name, sums in value.items()
    )


def check_sides(sides: Any, request_dim: int | None) -> None:
    """Check that the sides of a request are equally wide and make up its vector."""
    if sides is None:
        return
    widths = list(sides.values()) if isinstance(sides, dict) else []
    if not widths or not all(is_int(width) and width > 0 for width in widths) or len(set(widths)) > 1:
        raise ConfigError(f"request_sides: found {sides!r}, expected names with one width for all, above 0.")
    if request_dim not in (None, sum(widths)):
        raise ConfigError(f"request_sides: found {sum(widths)} numbers together, request_dim is {request_dim}.")
