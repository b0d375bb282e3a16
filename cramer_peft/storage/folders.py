"""Folders that are replaced as a whole: built beside the old files, and swapped in at the end."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cramer_peft.storage.files import atomic_file

_TEMPORARY = re.compile(r"\.(new|old)\.[0-9a-f]{16}\.tmp")
_STALE_SECONDS = 7 * 24 * 3600  # a long training builds for days


@contextmanager
def new_version(folder: str | os.PathLike[str], replaced: str | None = None) -> Iterator[Path]:
    """Yield an empty folder for new files, which move into ``folder`` when the block ends without an error.

    They take the place of files of the same names; all other files in ``folder`` stay. After an error, Ctrl-C
    included, ``folder`` is as it was before. It may be a link, a mount or the current folder: the new files are built
    inside it, in a folder with a hidden name. One that a killed process left behind is removed by the next call, after
    a week.

    Args:
        folder: The folder; made if it does not exist.
        replaced: A regular expression; old files whose path in ``folder`` it matches go, too.
    """
    folder = Path(folder)
    made = _make(folder)
    try:
        _remove_stale(folder)
        new = folder / f".new.{secrets.token_hex(8)}.tmp"
        new.mkdir()
        try:
            yield new
            _swap(new, folder, replaced)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    finally:
        for path in reversed(made):
            with suppress(OSError):  # it is not empty
                path.rmdir()


def write_problem(path: str | os.PathLike[str]) -> str | None:
    """Return why a folder cannot be written or made, or None; nothing is made.

    Args:
        path: The folder, or one that is to be made.
    """
    path = Path(path).absolute()
    place = next((missing.parent for missing in reversed(_missing(path))), path)
    if not place.is_dir():
        return f"{place} is not a folder" if place.exists() else f"{place} is a link to nothing"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} may not be written"


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were made."""
    missing = _missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _missing(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there, the innermost first."""
    missing = []
    while not os.path.lexists(folder) and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    return missing


def _swap(new: Path, folder: Path, replaced: str | None) -> None:
    """Move the files of ``new`` to their places in ``folder``; undo it all if a move fails."""
    files = [path.relative_to(new) for path in sorted(new.rglob("*")) if not path.is_dir()]
    for name in files:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise IsADirectoryError(errno.EISDIR, "a folder is in the place of a file", str(folder / name))
    old = folder / f".old.{secrets.token_hex(8)}.tmp"
    undo: list[tuple[Path, Path]] = []
    made: list[Path] = []
    safe = True  # every old file is either in its place or replaced

    def move(source: Path, target: Path) -> None:
        undo.append((target, source))  # noted first: an interrupt may come after any step
        made.extend(_make(target.parent))
        _move(source, target)

    try:
        gone = [name for name in _matching(folder, replaced) if name not in files]
        for name in (*files, *gone):
            if os.path.lexists(folder / name):
                move(folder / name, old / name)
        for name in files:
            move(new / name, folder / name)
    except BaseException:
        for source, target in reversed(undo):
            if os.path.lexists(source):  # else it was not moved
                try:
                    _move(source, target)
                except OSError:
                    safe = False
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        raise
    finally:
        if safe:
            shutil.rmtree(old, ignore_errors=True)


def _matching(folder: Path, pattern: str | None) -> list[Path]:
    """Return the files of a folder, one level deep, whose path in it a regular expression matches."""
    if pattern is None:
        return []
    found = [path.relative_to(folder) for path in (*folder.glob("*"), *folder.glob("[!.]*/*")) if not path.is_dir()]
    return [name for name in found if re.fullmatch(pattern, name.as_posix())]


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_file(target) as temporary:  # a link to another disk lies on the way
            shutil.copyfile(source, temporary)
        source.unlink()


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
