from __future__ import annotations

from dataclasses import replace

import pytest
from benchmark.cells import Cell, DataSource
from benchmark.plan.budget import Job, within

from cramer_peft.errors import ConfigError

CELL = Cell(DataSource("films"), "leave-one-out", "sasrec", "ours", 0)


def jobs() -> list[Job]:
    cells = [replace(CELL, method=name) for name in ("frozen", "ours", "lora")]
    return [Job(CELL, True, 60), *(Job(cell, False, 60) for cell in cells)]


def test_a_budget_takes_what_fits_and_counts_the_backbone() -> None:
    kept, cut = within(jobs(), minutes=2, workers=1)
    assert [job.label for job in kept] == ["backbone sasrec", "frozen"]
    assert [job.label for job in cut] == ["ours", "lora"]
    assert within(jobs(), minutes=2, workers=2)[1] == []
    stored = [replace(job, stored=True) for job in jobs()[:2]]
    assert len(within([*stored, *jobs()[2:]], minutes=1, workers=1)[0]) == 3


def test_a_budget_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs about 2"):
        within(jobs(), minutes=1.5, workers=1)
