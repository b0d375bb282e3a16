"""What happens once a module is imported; PEFT learns of the adapter in this way."""

import subprocess
import sys
from pathlib import Path

import pytest

from cramer_peft.tuner.import_hook import after_import, being_imported

KNOWN = "from peft import mapping; print('REQUEST_MASK' in mapping.PEFT_TYPE_TO_TUNER_MAPPING)"


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "imported_late.py").write_text("from cramer_peft.tuner.import_hook import being_imported\nvalue = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)
    return "imported_late"


def test_it_runs_once_after_the_module(late: str) -> None:
    seen: list[int] = []
    after_import(late, lambda: seen.append(sys.modules[late].value))
    finders = len(sys.meta_path)
    assert seen == []
    module = __import__(late)
    assert seen == [1]
    assert len(sys.meta_path) == finders - 1
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    assert module.__spec__.loader is module.__loader__
    after_import(late, lambda: seen.append(2))  # it is there already
    assert seen == [1, 2]


def test_a_module_that_is_not_there() -> None:
    seen: list[int] = []
    after_import("no_such_module_at_all", lambda: seen.append(1))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        __import__("no_such_module_at_all")
    assert seen == []


def test_while_a_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "half_done"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(
        "from cramer_peft.tuner.import_hook import being_imported\nseen = being_imported('half_done')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    __import__("half_done.part")
    assert sys.modules["half_done.part"].seen
    assert not being_imported("half_done")
    assert not being_imported("no_such_package")


@pytest.mark.parametrize(
    "first",
    [
        "import cramer_peft",
        "import peft, cramer_peft",
        "from cramer_peft import RequestMaskConfig",
        "import cramer_peft.training",
        "import cramer_peft.storage",
        "import cramer_peft.encoders",
    ],
)
def test_peft_knows_the_adapter_in_any_order(first: str) -> None:
    code = f"{first}; {KNOWN}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "True", run.stderr
