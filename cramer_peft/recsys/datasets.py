"""Public data sets that are fetched when they are asked for, never shipped or installed."""

from __future__ import annotations

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

from cramer_peft.errors import DownloadError
from cramer_peft.io import write_bytes

_REQUIREMENT = "recbole==1.2.1"
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


_MOVIELENS_100K = (
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
)


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


def download_wheel(folder: Path) -> Path:
    """Download the wheel that holds the MovieLens-100k files into ``folder`` with pip.

    Nothing is installed and no code of the package is run.

    Args:
        folder: Existing folder, where the wheel is put.

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
        _REQUIREMENT,
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
            f"pip did not bring {_REQUIREMENT} within {_TIMEOUT_SECONDS} seconds. Check the "
            f"network and try again. {_ELSEWHERE}"
        ) from error
    if result.returncode != 0:
        last = "\n".join((result.stdout + "\n" + result.stderr).strip().splitlines()[-8:])
        raise DownloadError(
            f"pip could not download {_REQUIREMENT} (exit status {result.returncode}). Its last "
            f"lines:\n{last}\n{_ELSEWHERE}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        names = ", ".join(wheel.name for wheel in wheels) or "none"
        raise DownloadError(f"pip was to bring one wheel, found: {names}. {_ELSEWHERE}")
    return wheels[0]


def fetch_movielens_100k(cache_dir: Path | None = None, download: Callable[[Path], Path] = download_wheel) -> Path:
    """Return a folder with ``ml-100k.inter`` and ``ml-100k.item``, fetched if need be.

    MovieLens-100k is by GroupLens Research, University of Minnesota (F. M. Harper and J. A.
    Konstan, "The MovieLens Datasets: History and Context", 2015). Its licence does not allow
    redistribution or commercial use without permission. So it is no part of this package: the two
    data files are read at run time out of the RecBole 1.2.1 wheel, which is never installed, and
    the wheel is removed again.

    Args:
        cache_dir: Folder for fetched data; by default what :func:`cache_dir` returns. Files there
            with the right checksum are used as they are, others are replaced.
        download: Gets an empty folder, puts the wheel there and returns its path.

    Returns:
        The folder, for :func:`cramer_peft.recsys.atomic.load_interactions`.

    Raises:
        DownloadError: If the wheel cannot be fetched or is damaged, a file in it is missing or has
            another checksum, or the cache cannot be written.
    """
    folder = _cache_folder(cache_dir)
    if all(_is_cached(folder, member) for member in _MOVIELENS_100K):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the download: fail early
    except OSError as error:
        raise _unwritable(folder, error) from error
    with tempfile.TemporaryDirectory() as temporary:
        contents = _read_members(download(Path(temporary)))
    for member, content in contents.items():
        try:
            write_bytes(folder / member.name, content)
        except OSError as error:
            raise _unwritable(folder, error) from error
    return folder


def _cache_folder(root: Path | None) -> Path:
    return (cache_dir() if root is None else Path(root)) / "ml-100k"


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


def _read_members(wheel: Path) -> dict[_Member, bytes]:
    """Return the content of each data file in the wheel, all of them checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            missing = [member.path for member in _MOVIELENS_100K if member.path not in names]
            if missing:
                raise DownloadError(
                    f"{wheel.name}: expected {', '.join(missing)} in it, found {len(names)} other "
                    f"files. It is not the wheel of {_REQUIREMENT}. {_ELSEWHERE}"
                )
            contents = {member: _read_member(archive, member) for member in _MOVIELENS_100K}
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
