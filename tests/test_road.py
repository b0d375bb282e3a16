"""The main roads through the package do not get longer: see ``road.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Most calls, files and changes of file, as of Python 3.11; later versions inline comprehensions and make fewer calls.
CEILINGS = {
    "a call, vectors": (70, 9, 32),
    "a call, texts": (70, 9, 32),
    "inject_request_masks": (167, 22, 72),
    "load_request_masks": (350, 27, 140),
}


@pytest.fixture(scope="module")
def road() -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("road", Path(__file__).with_name("road.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["road"] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", CEILINGS)
def test_a_road_is_no_longer_than_it_was(road: ModuleType, name: str) -> None:
    found = road.ROADS[name]()
    measured = (found.calls, found.files, found.changes)
    assert all(value <= most for value, most in zip(measured, CEILINGS[name], strict=True)), (
        f"{name}: {measured}, at most {CEILINGS[name]}; {found.calls_by_file()}"
    )


def test_every_road_has_a_ceiling(road: ModuleType) -> None:
    assert set(road.ROADS) == set(CEILINGS)


def test_only_the_packages_own_calls_count(road: ModuleType) -> None:
    found = road.count(lambda: [str(number) for number in range(3)])
    assert (found.calls, found.files, found.changes) == (0, 0, 0)
    steps = (("a.py", "f"), ("a.py", "g"), ("b.py", "h"), ("a.py", "f"))
    assert (road.Road(steps).calls, road.Road(steps).files, road.Road(steps).changes) == (4, 2, 3)


def test_a_profiler_is_put_back(road: ModuleType) -> None:
    before = sys.getprofile()
    with pytest.raises(ZeroDivisionError):
        road.count(lambda: 1 / 0)
    assert sys.getprofile() is before
