import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cramer_peft.errors import DownloadError
from cramer_peft.recsys import datasets
from cramer_peft.recsys.datasets import cache_dir, download_wheel, fetch_movielens_100k

CONTENT = {"ml-100k.inter": b"interactions" * 50, "ml-100k.item": b"items" * 50}
NAME = "recbole-1.2.1-py3-none-any.whl"
REAL_MEMBERS = datasets._MOVIELENS_100K
FOLDER = "recbole/dataset_example/ml-100k/"


@pytest.fixture(autouse=True)
def small_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the real files, which may not be shipped with the tests."""
    members = tuple(
        datasets._Member(FOLDER + name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items()
    )
    monkeypatch.setattr(datasets, "_MOVIELENS_100K", members)


class Downloader:
    """Puts a wheel with the given content where it is told, and remembers where."""

    def __init__(self, content: dict[str, bytes], keep: int | None = None) -> None:
        self.content = content
        self.keep = keep
        self.wheels: list[Path] = []

    def __call__(self, folder: Path) -> Path:
        wheel = folder / NAME
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in self.content.items():
                archive.writestr(FOLDER + name, data)
        wheel.write_bytes(wheel.read_bytes()[: self.keep])
        self.wheels.append(wheel)
        return wheel


def never(_: Path) -> Path:
    raise AssertionError("downloaded although cached")


def assert_complete(folder: Path) -> None:
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == CONTENT


def test_real_checksums_are_well_formed() -> None:
    assert [member.name for member in REAL_MEMBERS] == ["ml-100k.inter", "ml-100k.item"]
    for member in REAL_MEMBERS:
        assert len(bytes.fromhex(member.sha256)) == 32
        assert member.path == FOLDER + member.name


def test_fetches_once_and_removes_the_wheel(tmp_path: Path) -> None:
    download = Downloader(CONTENT)
    folder = fetch_movielens_100k(tmp_path / "new" / "cache", download)
    assert_complete(folder)
    assert not download.wheels[0].exists()
    assert fetch_movielens_100k(tmp_path / "new" / "cache", never) == folder


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_a_corrupt_or_missing_cached_file_is_fetched_again(tmp_path: Path, name: str) -> None:
    folder = fetch_movielens_100k(tmp_path, Downloader(CONTENT))
    (folder / name).write_bytes(b"corrupt")
    assert_complete(fetch_movielens_100k(tmp_path, Downloader(CONTENT)))
    (folder / name).unlink()
    assert_complete(fetch_movielens_100k(tmp_path, Downloader(CONTENT)))


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAMER_PEFT_CACHE", str(tmp_path))
    folder = fetch_movielens_100k(download=Downloader(CONTENT))
    assert folder.parent == tmp_path
    assert_complete(folder)


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_truncated_wheel(tmp_path: Path, keep: int) -> None:
    download = Downloader(CONTENT, keep)
    with pytest.raises(DownloadError, match=r"expected a whole wheel.*found.*--data FOLDER"):
        fetch_movielens_100k(tmp_path, download)
    assert not download.wheels[0].exists()
    assert not list(tmp_path.rglob("*.i*"))


def test_damage_inside_the_wheel(tmp_path: Path) -> None:
    def download(folder: Path) -> Path:
        wheel = Downloader(CONTENT)(folder)
        wheel.write_bytes(wheel.read_bytes().replace(b"interactions", b"INTERACTIONS"))
        return wheel

    with pytest.raises(DownloadError, match="CRC"):
        fetch_movielens_100k(tmp_path, download)


def test_a_missing_member(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"expected \S*ml-100k\.item in it, found 1 "):
        fetch_movielens_100k(tmp_path, Downloader({"ml-100k.inter": CONTENT["ml-100k.inter"]}))


@pytest.mark.parametrize("wrong", [b"other", b"items" * 51, b"items" * 100_000])
def test_a_wrong_checksum_names_both_and_writes_nothing(tmp_path: Path, wrong: bytes) -> None:
    expected = hashlib.sha256(CONTENT["ml-100k.item"]).hexdigest()
    with pytest.raises(DownloadError, match=f"has SHA-256 [0-9a-f]{{64}}, expected {expected}"):
        fetch_movielens_100k(tmp_path, Downloader({**CONTENT, "ml-100k.item": wrong}))
    assert not list(tmp_path.rglob("*.i*"))


def test_no_wheel_where_the_downloader_says(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="No such file"):
        fetch_movielens_100k(tmp_path, lambda folder: folder / "absent.whl")


def test_a_cache_that_cannot_be_written_fails_before_the_download(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("x")
    with pytest.raises(DownloadError, match="Set CRAMER_PEFT_CACHE"):
        fetch_movielens_100k(occupied, never)


# --- the folder


def test_cache_dir_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("CRAMER_PEFT_CACHE", "")
    assert cache_dir() == tmp_path / ".cache" / "cramer-peft"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "cramer-peft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "cramer-peft"
    monkeypatch.setenv("CRAMER_PEFT_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


# --- pip, without running it


class FakePip:
    def __init__(self, wheels: tuple[str, ...] = (NAME,), status: int = 0, stderr: str = "") -> None:
        self.wheels = wheels
        self.status = status
        self.stderr = stderr
        self.command: list[str] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.command = command
        folder = Path(command[command.index("-d") + 1])
        for wheel in self.wheels:
            (folder / wheel).touch()
        return subprocess.CompletedProcess(command, self.status, "collecting", self.stderr)


def test_pip_downloads_one_pinned_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    assert download_wheel(tmp_path) == tmp_path / NAME
    assert pip.command[:4] == [sys.executable, "-m", "pip", "download"]
    assert pip.command[-1] == "recbole==1.2.1"
    assert {"--no-deps", "--only-binary=:all:"} <= set(pip.command)


def test_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(f"line {number}" for number in range(20))
    monkeypatch.setattr(subprocess, "run", FakePip((), 1, lines))
    with pytest.raises(DownloadError, match="exit status 1") as caught:
        download_wheel(tmp_path)
    assert "line 19" in str(caught.value)
    assert "line 11\n" not in str(caught.value)
    assert "--data FOLDER" in str(caught.value)


@pytest.mark.parametrize("wheels", [(), ("a.whl", "b.whl")])
def test_pip_brings_none_or_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: tuple[str, ...]) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheels))
    with pytest.raises(DownloadError, match=r"one wheel, found: (none|a.whl, b.whl)"):
        download_wheel(tmp_path)


def test_pip_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DownloadError, match=r"within 300 seconds.*--data FOLDER"):
        download_wheel(tmp_path)
