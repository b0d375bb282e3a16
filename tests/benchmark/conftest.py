"""The small data set and models of tests/recsys, for the tests of the benchmark."""

import runpy
from pathlib import Path

# pytest gives the fixtures of a conftest.py to its own folder only
_shared = runpy.run_path(str(Path(__file__).parent.parent / "recsys" / "conftest.py"))
globals().update({name: value for name, value in _shared.items() if not name.startswith("__")})
