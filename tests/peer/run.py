"""Runs PEFT's own test suite, unedited, over ``RequestMaskConfig``.

PEFT ships its tests in its source distribution. They are fetched through pip when this runs, in the
version that is installed, and never copied into the project::

    python tests/peer/run.py                  # the installed version
    python tests/peer/run.py --peft 0.21.0 --with transformers==5.0.0  # others, in an environment made for them
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUITES = (
    "test_config.py",
    "test_custom_models.py",
    "test_decoder_models.py",
    "test_encoder_decoder_models.py",
    "test_feature_extraction_models.py",
)
HELPERS = ("testing_common.py", "testing_utils.py")
EXIT_NOT_FETCHED = 3


class NotFetchedError(Exception):
    """PEFT's source distribution could not be had."""


def fetch(peft_version: str, cache: Path) -> Path:
    """The source distribution of ``peft_version``, downloaded to ``cache`` through pip's own settings.

    Raises:
        NotFetchedError: If no index has it, or none can be reached.
    """
    archive = cache / f"peft-{peft_version}.tar.gz"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    # pip reads a source distribution's metadata by running setuptools; the installed one saves a download.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--timeout", "15"]
        command += ["--no-deps", "--no-binary", "peft", *isolation, "--dest", folder, f"peft=={peft_version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(folder) / archive.name
        if done.returncode or not downloaded.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no such file"]
            raise NotFetchedError(f"pip could not download the source of peft {peft_version}: {lines[-1]}")
        os.replace(downloaded, archive)
    return archive


def extract(archive: Path, folder: Path) -> None:
    """Write the suites and what they import to ``folder``, byte for byte."""
    folder.mkdir()
    (folder / "__init__.py").touch()  # the repository has one, the distribution does not
    prefix = archive.name.removesuffix(".tar.gz") + "/tests/"
    with tarfile.open(archive) as tar:
        for name in SUITES + HELPERS:
            member = tar.extractfile(prefix + name)
            if member is None:
                raise NotFetchedError(f"{archive.name} has no file {prefix + name}")
            (folder / name).write_bytes(member.read())


def run(archive: Path, python: str = sys.executable, arguments: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the suites of ``archive`` in a pytest of their own.

    Returns:
        The counts ``passed`` and ``deselected``, ``failed`` (test → error), ``skipped`` (reason → count),
        and the ``versions`` that ran.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extract(archive, folder / "peft_tests")
        (folder / "pytest.ini").write_text("[pytest]\n")
        report = folder / "report.json"
        command = [python, "-m", "pytest", "-p", "peer_harness.plugin", "-p", "no:cacheprovider", "-q", "--tb=line"]
        command += ["--rootdir", str(folder), "-c", str(folder / "pytest.ini"), *arguments]
        command += [str(folder / "peft_tests" / suite) for suite in SUITES]
        done = subprocess.run(
            command, cwd=folder, env=_environment(folder, report), capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(f"the suite did not run (exit {done.returncode}):\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(report.read_text())
        found["output"] = done.stdout
        return found


def _environment(folder: Path, report: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "HF_"))}
    return {
        **inherited,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PEER_REPORT": str(report),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [inherited.get("PYTHONPATH")])]),
        "TOKENIZERS_PARALLELISM": "false",
    }


def make_environment(requirements: list[str], folder: Path) -> str:
    """A virtual environment with ``requirements``, and everything else as it is installed here.

    Returns:
        Its Python.
    """
    venv.create(folder, with_pip=True)
    python = str(next(iter([*folder.glob("bin/python"), *folder.glob("Scripts/python.exe")])))
    find = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    outer = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (Path(own) / "outer.pth").write_text(f"import site; site.addsitedir({str(outer)!r})\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def main() -> int:
    """Run the suite from the command line and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft", help="version of PEFT (default: the installed one)")
    parser.add_argument("--with", action="append", default=[], dest="others", help="another requirement, as for pip")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cramer-peft-peer")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    parser.add_argument("--show", action="store_true", help="print the suite's own output")
    options, arguments = parser.parse_known_args()
    peft_version = options.peft or version("peft")
    try:
        archive = fetch(peft_version, options.cache)
    except NotFetchedError as error:
        print(error, file=sys.stderr)
        return EXIT_NOT_FETCHED
    with tempfile.TemporaryDirectory() as folder:
        other = options.others or peft_version != version("peft")
        requirements = [f"peft=={peft_version}", *options.others]
        python = make_environment(requirements, Path(folder)) if other else sys.executable
        found = run(archive, python, tuple(arguments))
    output = found.pop("output")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(output if options.show else json.dumps({**found, "failed": sorted(found["failed"])}, indent=2))
    return bool(found["failed"])


if __name__ == "__main__":
    sys.exit(main())
