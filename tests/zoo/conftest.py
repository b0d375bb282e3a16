"""Lets the test import the animals."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib, animals.py is not importable otherwise
