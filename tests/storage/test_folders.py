"""Folders that are swapped in as a whole."""

import os
import time
from pathlib import Path

import pytest

from cramer_peft.storage import folders
from cramer_peft.storage.folders import new_version, write_problem


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


OLD = {"a/one": "old 1", "a/mine.txt": "mine", "two": "old 2", ".hidden/x": "kept", "a/part-7": "stale"}
NEW = {"a/one": "new 1", "two": "new 2", "b/c/three": "new 3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "out", OLD)
    return tmp_path / "out"


def test_new_files_take_the_places_of_old_ones_and_the_rest_stays(folder: Path) -> None:
    with new_version(folder, r"a/part-\d") as new:
        write(new, NEW)
        assert {name: text for name, text in content(folder).items() if ".new." not in name} == OLD
    assert content(folder) == {**{name: text for name, text in OLD.items() if name != "a/part-7"}, **NEW}
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "a", "b", "two"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_while_building_changes_nothing(folder: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_version(folder) as new:  # noqa: PT012
        write(new, NEW)
        raise error
    assert content(folder) == OLD
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "a", "two"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_an_error_at_any_step_of_the_swap_changes_nothing(
    folder: Path, step: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, replace = iter(range(100)), os.replace

    def failing(source: Path, target: Path) -> None:
        number = next(steps)
        if number == step and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if number == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(KeyboardInterrupt), new_version(folder, r"a/part-\d") as new:
        write(new, {name: text for name, text in NEW.items() if name != "b/c/three"})
    assert content(folder) == OLD
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "a", "two"]


def test_a_folder_in_the_place_of_a_file(folder: Path) -> None:
    (folder / "two").unlink()
    write(folder, {"two/inside": "mine"})
    with pytest.raises(OSError, match="one"), new_version(folder) as new:
        write(new, {"a/mine.txt": "new", "a/one/below": "a file is in the way"})
    assert content(folder) == {**{name: text for name, text in OLD.items() if name != "two"}, "two/inside": "mine"}


def test_a_folder_is_not_replaced_by_a_file(folder: Path) -> None:
    (folder / "two").unlink()
    write(folder, {"two/inside": "mine"})
    before = content(folder)
    with pytest.raises(IsADirectoryError, match="two"), new_version(folder) as new:
        write(new, NEW)
    assert content(folder) == before


def test_old_files_that_cannot_be_put_back_are_not_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves, replace = iter(range(100)), os.replace

    def failing(source: Path, target: Path) -> None:
        if next(moves) > 0:
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"), new_version(folder) as new:
        write(new, NEW)
    assert next(folder.glob(".old.*.tmp/a/one")).read_text() == "old 1"


def test_folders_that_were_made_go_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_version(tmp_path / "x" / "y") as new:  # noqa: PT012
        write(new, NEW)
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with new_version(tmp_path / "x" / "y") as new:
        write(new, NEW)
    assert content(tmp_path / "x" / "y") == NEW


def test_the_current_folder_and_a_link(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(folder)
    with new_version(tmp_path / "link") as new:
        write(new, {"two": "by link"})
    assert (tmp_path / "link").is_symlink()
    monkeypatch.chdir(folder)
    for name in (".", ""):
        with new_version(Path(name)) as new:
            write(new, {"a/one": "here"})
    assert content(folder) == {**OLD, "two": "by link", "a/one": "here"}


def test_another_disk_inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def across(source: Path, target: Path) -> None:
        if "a" in Path(target).parts and not Path(source).name.startswith("."):
            raise OSError(folders.errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(folders.os, "replace", across)
    with new_version(folder) as new:
        write(new, NEW)
    assert content(folder) == {**OLD, **NEW}


def test_what_a_killed_process_left_goes_after_a_week(folder: Path) -> None:
    names = (f".new.{'0' * 16}.tmp", f".old.{'1' * 16}.tmp", ".new.mine.tmp")
    for name in names:
        write(folder, {f"{name}/x": "left"})
        os.utime(folder / name, (time.time() - 8 * 24 * 3600,) * 2)
    write(folder, {f".new.{'2' * 16}.tmp/x": "of a training at work"})
    with new_version(folder):
        pass
    assert sorted(path.name for path in folder.glob(".*.tmp")) == [f".new.{'2' * 16}.tmp", ".new.mine.tmp"]


def test_why_a_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    assert write_problem(tmp_path / "new" / "deep") is None
    assert write_problem(tmp_path) is None
    assert "file is not a folder" in str(write_problem(tmp_path / "file" / "new"))
    assert "loose is a link to nothing" in str(write_problem(tmp_path / "loose"))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "may not be written" in str(write_problem(tmp_path / "new"))
    tmp_path.chmod(0o700)
