"""The command, and what it says where the extra is missing."""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import serve.__main__ as command
import uvicorn

from cramer_peft.errors import MissingExtraError

PACKAGE = Path(command.__file__).parent


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(MissingExtraError, match=r"needs uvicorn, not installed.*pip install 'cramer-peft\[serve\]'"):
        runpy.run_path(str(PACKAGE / "__init__.py"))


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: configs.append(self.config))
    monkeypatch.setattr(sys, "argv", ["serve", str(bundle), "--port", "8123", "--max-connections", "7"])
    seen: dict[str, Any] = {}
    make_app = command.make_app
    monkeypatch.setattr(command, "make_app", lambda *args: seen.update(settings=args[1]) or make_app(*args))
    command.main()
    assert (configs[0].host, configs[0].port, configs[0].limit_concurrency) == ("127.0.0.1", 8123, 7)
    assert seen["settings"].max_connections == 7
    assert seen["settings"].timeout == 5.0
