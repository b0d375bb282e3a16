from collections import Counter
from pathlib import Path

import pytest
import torch

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.own_data import Columns, Protocol, load_own_data

pytest.importorskip("accelerate")


def test_own_requests_belong_to_their_targets(stated: Path, folder: Path) -> None:
    data = load_own_data(stated)
    _, *lines = (stated / "x.inter").read_text().splitlines()
    for stage, place in (("test", -1), ("validation", -2)):
        texts = data.own_requests(stage)  # type: ignore[arg-type]
        assert texts is not None
        for user, text in enumerate(texts):
            own = [line for line in lines if line.startswith(f"u{user}\t")]
            assert text == (own[place].split("\t")[3].strip() or None)
        assert 0 < sum(text is not None for text in texts) < 10
    assert load_own_data(folder).own_requests("test") is None


def test_own_requests_by_time(stated: Path) -> None:
    data = load_own_data(stated, "temporal")
    texts = data.own_requests("test")
    assert texts is not None
    assert len(texts) == len(data.split.test_target)
    assert "test" in data.describe()


def test_requests_that_are_no_text(stated: Path, tmp_path: Path) -> None:
    for name in ("x.item", "x.inter"):
        text = (stated / name).read_text().replace("request:token_seq", "request:float")
        (tmp_path / name).write_text(text.replace("wish ", ""))
    with pytest.raises(DataError, match="'request' has type float, expected token or token_seq or str"):
        load_own_data(tmp_path).own_requests("test")


def test_data_that_cannot_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 'random', expected one of leave-one-out, temporal"):
        load_own_data(folder, "random")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"no attribute is on 99 or more items.*attribute_column"):
        load_own_data(folder, columns=Columns(min_attribute_items=99))
    with pytest.raises(DataError, match="Name another one with attribute_column"):
        load_own_data(folder, columns=Columns(attribute_column="colour"))
    with pytest.raises(DataError, match="Did you mean 'movielens-1m'"):
        load_own_data("movielens-m1")


def test_a_least_rating_is_said_and_counts_for_stated_requests(folder: Path, tmp_path: Path) -> None:
    assert "rating" not in load_own_data(folder).describe().replace("no rating", "")
    (tmp_path / "x.item").write_text((folder / "tales.item").read_text())
    header, *lines = (folder / "tales.inter").read_text().splitlines()
    cells = [f"{line}\t{5 - number % 2}\twish {number}" for number, line in enumerate(lines)]
    cells += [f"{line.split(chr(9))[0]}\ti0\t-9\t1\ttoo low" for line in lines[-1:]]
    (tmp_path / "x.inter").write_text("\n".join([f"{header}\trating:float\trequest:str", *cells]) + "\n")
    said = load_own_data(tmp_path).describe()
    assert "rating 'rating' (every interaction counts, whatever its rating), request 'request'" in said
    data = load_own_data(tmp_path, columns=Columns(min_rating=5))
    assert f"{len(lines) // 2 + 1} interactions rated below 5 left out" in data.describe()
    texts = data.own_requests("test")
    assert texts is not None
    assert all(text is not None and int(text.split()[1]) % 2 == 0 for text in texts)


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal"])
def test_popularity_counts_visits_of_training_alone(stated: Path, protocol: Protocol) -> None:
    data = load_own_data(stated, protocol)
    counts = Counter(int(item) for history in data.split.train for item in history)
    popularity = data.catalogue.numbers["popularity"].tolist()
    assert popularity == [counts[item] for item in range(len(data.catalogue))]
    assert sum(popularity) < sum(map(len, data.interactions.sequences))
    assert "attributes: column 'genres', cut at spaces: 'Classic' (20), 'Action' (10)" in data.describe()


@pytest.mark.parametrize("protocol", ["leave-one-out", "temporal"])
def test_training_requests_are_those_of_training_visits_alone(stated: Path, folder: Path, protocol: Protocol) -> None:
    data = load_own_data(stated, protocol)
    given = {tuple(line.split("\t")[:2]): line.split("\t")[3].strip() for line in read_lines(stated)}
    users = data.split.train_users.tolist() if protocol == "temporal" else range(len(data.split.train))  # type: ignore[attr-defined]
    found = data.training_requests()
    for user, items, texts in zip(users, data.split.train, found, strict=True):
        names = [(data.interactions.user_ids[user], data.catalogue.item_ids[item]) for item in items.tolist()]
        assert [text or "" for text in texts] == [given[name] for name in names]
    said = data.said()
    own = {text for texts in found for text in texts[1:] if text}
    assert sorted(text for _, text, _ in said) == sorted(own)
    held_out = {text for stage in ("validation", "test") for text in data.own_requests(stage) or ()}  # type: ignore[arg-type]
    assert own
    assert not own & held_out
    for history, text, item in said:
        texts = next(texts for texts in found if text in texts)
        assert len(history) == texts.index(text)
        assert torch.equal(data.split.train[found.index(texts)][: len(history) + 1], torch.tensor([*history, item]))
    assert "state a request, such as 'wish " in (data.describe_requests() or "")
    silent = load_own_data(folder)
    assert not any(map(any, silent.training_requests()))
    assert silent.said() == []
    assert silent.describe_requests() is None


def read_lines(folder: Path) -> list[str]:
    return (folder / "x.inter").read_text().splitlines()[1:]


def test_stated_requests_stand_in_for_attributes(stated: Path, folder: Path) -> None:
    columns = Columns(min_attribute_items=99)
    assert load_own_data(stated, columns=columns).catalogue.attributes == ()
    assert load_own_data(folder, columns=columns, attributes=False).catalogue.attributes == ()
    with pytest.raises(DataError, match=r"no attribute is on 99 .* a column of the interactions"):
        load_own_data(stated, columns=columns, attributes=True)
