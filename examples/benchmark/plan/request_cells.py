"""The cells of the matrices of own requests: stated ones, and the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmark.baselines.masks import with_paper_loss
from benchmark.cells import Cell, CellSettings, OwnRequests
from benchmark.methods import CRAMER, OURS, OURS_SHUFFLED
from benchmark.plan.paper_variants import PAPER_VARIANTS, STATED_HOLD_OUTS, paper_settings
from cramer_peft.errors import ConfigError

PAPER_ENCODER = "all-minilm-l6-v2"
_REFUSED = ("oracle filter", "parsed filter", OURS_SHUFFLED)


def request_cells(
    cell: Cell, methods: Sequence[str], variants: Sequence[str] | None, seeds: Sequence[int]
) -> list[Cell]:
    """Return the cells of one data set, split and backbone.

    Args:
        cell: Any cell there, with the study and the settings of all.
        methods: Methods.
        variants: Hold-outs of all methods (stated requests) or changes to the paper's (texts of the items before), on
            the first seed; None: all.
        seeds: Seeds.

    Raises:
        ConfigError: If a method cannot be measured so, or a variant is unknown or changes none of the methods.
    """
    study = cell.study
    assert isinstance(study, OwnRequests)
    refused = [method for method in methods if method in _REFUSED]
    if refused:
        raise ConfigError(
            f"method: {refused[0]!r} is for made-up requests only; shuffled requests are measured of every method. "
            "Leave it out."
        )
    varied = _varied_methods(methods, study)
    if variants and not varied:
        changed = f"the method {CRAMER!r}" if study.source == "history" else "methods other than 'frozen'"
        raise ConfigError(
            f"variant: found {', '.join(map(repr, variants))} for {', '.join(map(repr, methods))}, but variants here "
            f"change {changed} alone. Add one to methods, or leave the variants out."
        )
    cells = [
        replace(cell, method=method, seed=seed, settings=_settings(method, cell.settings, study))
        for seed in seeds
        for method in methods
    ]
    return cells + [
        replace(found, variant=variant, settings=_varied(variant, found.settings, study))
        for variant in (_all_variants(study) if variants is None else variants)
        for found in cells
        if found.seed == seeds[0] and found.method in varied
    ]


def _all_variants(study: OwnRequests) -> tuple[str, ...]:
    return tuple(STATED_HOLD_OUTS if study.source == "stated" else PAPER_VARIANTS)


def _varied_methods(methods: Sequence[str], study: OwnRequests) -> tuple[str, ...]:
    if study.source == "history":
        return tuple(method for method in methods if method == CRAMER)
    return tuple(method for method in methods if method != "frozen")


def _varied(variant: str, settings: CellSettings, study: OwnRequests) -> CellSettings:
    if study.source == "history":
        return paper_settings(variant, settings)
    if variant not in STATED_HOLD_OUTS:
        names = ", ".join(map(repr, STATED_HOLD_OUTS))
        raise ConfigError(f"variant: found {variant!r}, expected one of {names}.")
    return replace(settings, hold_out=STATED_HOLD_OUTS[variant])


def _settings(method: str, settings: CellSettings, study: OwnRequests) -> CellSettings:
    """Return a method's settings: with the paper's requests, all but ours learn the next item of one row each."""
    if study.source == "stated" or method == OURS:
        return settings
    paper = with_paper_loss(replace(settings.generator, positions=1))
    return replace(settings, generator=paper, encoder=settings.encoder or PAPER_ENCODER)
