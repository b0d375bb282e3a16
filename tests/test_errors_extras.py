import sys
from pathlib import Path

import pytest

from cramer_peft.errors import CramerError, MissingExtraError, require


def test_what_is_installed() -> None:
    assert require("json", extra="demo").dumps([1]) == "[1]"
    assert require("os.path", extra="demo").join("a", "b") == str(Path("a") / "b")


@pytest.mark.parametrize("module", ["module_that_is_not_there", "module_that_is_not_there.inner", "json.not_there"])
def test_what_is_not_installed_names_the_extra(module: str) -> None:
    with pytest.raises(
        MissingExtraError, match=rf"'{module}' is not installed.*pip install 'cramer-peft\[extra1\]'"
    ) as caught:
        require(module, extra="extra1")
    assert isinstance(caught.value, CramerError)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_blocked_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blocked_module", None)
    with pytest.raises(MissingExtraError, match=r"cramer-peft\[demo\]"):
        require("blocked_module", extra="demo")


def test_an_installed_module_that_lacks_something_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import something_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_needs") as caught:
        require("needs_more", extra="demo")
    assert not isinstance(caught.value, MissingExtraError)


def test_an_installed_module_that_fails_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text("raise ImportError('another numpy is needed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="another numpy is needed") as caught:
        require("fails", extra="demo")
    assert not isinstance(caught.value, MissingExtraError)
