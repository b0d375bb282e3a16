"""Lets the test import what it shares with the script that wrote the fixtures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib, fixture_runs.py is not importable
