"""Runs the tests of third-party backbones, each package in a fresh environment of its own.

RePlay and RecTools pin other versions of numpy, pandas and scikit-learn, so that no one environment holds both:

    python tests/backbones/environments.py                  # all of them
    python tests/backbones/environments.py rectools --folder environments
    python tests/backbones/environments.py --write docs/backbones.md

It prints a table of the results, and ends with an error if a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parent
PROJECT = TESTS.parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
VERSIONS = ("torch", "numpy", "pandas", "scikit-learn", "transformers", "peft")

COLUMNS = {
    "Effect in train": (
        "test_every_masked_part_has_an_effect_in_train",
        "test_the_generator_gets_gradients_in_train",
        "test_check_effect_finds_nothing",
    ),
    "Effect in eval": ("test_every_masked_part_has_an_effect_in_eval", "test_check_effect_finds_nothing"),
    "Row independence": ("test_rows_do_not_depend_on_their_neighbours",),
    "Rows without a request": ("test_a_row_without_a_request_is_the_frozen_models",),
    "Restoration": ("test_unloading_gives_back_the_very_model",),
}
PRINT_VERSIONS = """
import json, platform
from importlib.metadata import distributions
found = {d.metadata["Name"].lower(): d.version for d in distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclass(frozen=True)
class Environment:
    """What to install beside this project, and which tests to run there."""

    requirements: tuple[str, ...]
    tests: tuple[str, ...]


ENVIRONMENTS = {
    "replay": Environment(("replay-rec[torch]>=0.22",), ("test_replay.py",)),
    "rectools": Environment(("rectools[torch]>=0.19",), ("test_rectools.py",)),
    "transformers": Environment((), ("test_transformers.py", "test_torch.py")),
}


@dataclass
class Result:
    """Outcomes of one backbone's tests, by test, and what the tests recorded."""

    versions: dict[str, str]
    properties: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, list[bool]] = field(default_factory=dict)
    differences: list[float] = field(default_factory=list)


def main() -> int:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results: list[Result] = []
        failed = []
        for name in arguments.environments or ENVIRONMENTS:
            found, passed = run_environment(name, folder.resolve() / name, arguments)
            results += found
            failed += [] if passed else [name]
    tables = "\n\n".join([results_table(results), versions_table(results)])
    print(f"\n{tables}")
    if failed:
        print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
        return 1
    if arguments.write:
        write_tables(arguments.write, tables)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", help=f"of {', '.join(ENVIRONMENTS)}; all by default")
    parser.add_argument("--python", default=sys.executable, help="interpreter to make the environments with")
    parser.add_argument("--torch", default="torch==2.13.0", help="requirement that is installed first")
    parser.add_argument("--folder", type=Path, help="where to make and keep the environments; default: temporary")
    parser.add_argument("--reuse", action="store_true", help="take the environments in --folder as they are")
    parser.add_argument("--write", type=Path, help="page whose results are replaced by the new ones, if all passed")
    arguments = parser.parse_args()
    if arguments.reuse and not arguments.folder:
        parser.error("--reuse needs the --folder of an earlier run.")
    if unknown := [name for name in arguments.environments if name not in ENVIRONMENTS]:
        parser.error(f"unknown environments: {', '.join(unknown)}. Known are {', '.join(ENVIRONMENTS)}.")
    return arguments


def run_environment(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[list[Result], bool]:
    """Make an environment and run its tests there; the results, and whether all passed."""
    environment = ENVIRONMENTS[name]
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    if not arguments.reuse:
        print(f"{name}: installing in {folder}", flush=True)
        call([arguments.python, "-m", "venv", "--clear", str(folder)])
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call([*pip, arguments.torch])
        call([*pip, arguments.torch, *environment.requirements, str(PROJECT), "pytest>=8", "hypothesis>=6.100"])
    versions = json.loads(call([python, "-c", PRINT_VERSIONS], capture_output=True).stdout)
    report = folder / "results.xml"
    tests = [str(TESTS / test) for test in environment.tests]
    print(f"{name}: testing", flush=True)
    command = [
        python,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
        *tests,
    ]
    passed = call(command, check=False).returncode == 0
    results = list(read_report(report, {"environment": name, **versions}))
    if not results:
        raise SystemExit(f"{name}: no test ran; are its packages installed?")
    return results, passed


def call(command: list[str], check: bool = True, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=check, capture_output=capture_output, text=True, cwd=PROJECT, env=variables)


def read_report(report: Path, versions: dict[str, str]) -> Iterator[Result]:
    """Results of the backbones in a junit file, in the order of the tests."""
    found: dict[str, Result] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        properties = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        if "package" not in properties:
            continue
        result = found.setdefault(properties["name"], Result(versions))
        if difference := properties.pop("difference", ""):
            result.differences.append(float(difference))
        result.properties |= properties
        test = case.get("name", "").partition("[")[0]
        passed = all(case.find(tag) is None for tag in ("failure", "error", "skipped"))
        result.outcomes.setdefault(test, []).append(passed)
    yield from found.values()


def results_table(results: list[Result]) -> str:
    header = ["Model", "Masked", "Effect, independent rows", "Rows without a request", "Restoration"]
    rows = []
    for result in results:
        package = result.properties["package"]
        cells = [outcome(result, tests) for tests in COLUMNS.values()]
        if cells[3] == "yes":
            largest = max(result.differences)
            cells[3] = "bit for bit" if largest == 0 else f"to rounding ({largest:.0e})"
        if cells[4] == "yes":
            cells[4] = "bit for bit"
        effects = ", ".join(dict.fromkeys(cells[:3]))  # in train and in eval mode, and the rows
        name, notes = result.properties["name"], result.properties["notes"]
        model = f"{name} ({package} {public_version(result.versions[package])})"
        masked = "; ".join(filter(None, [result.properties.get("masked", ""), notes]))
        rows.append([model, masked, effects, *cells[3:]])
    return markdown(header, rows)


def outcome(result: Result, tests: Iterable[str]) -> str:
    passed = [value for test in tests for value in result.outcomes.get(test, [False])]
    return "yes" if all(passed) else "**no**"


def versions_table(results: list[Result]) -> str:
    rows = {}
    for result in results:
        found = [public_version(result.versions.get(package, "none")) for package in ("python", *VERSIONS)]
        rows[result.versions["environment"]] = [result.versions["environment"], *found]
    return markdown(["Environment", "Python", *VERSIONS], rows.values())


def public_version(version: str) -> str:
    """A version without the name of its build."""
    return version.partition("+")[0]


def markdown(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_tables(page: Path, tables: str) -> None:
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page} has no {BEGIN} … {END} to write between.")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
