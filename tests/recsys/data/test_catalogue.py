import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data import catalogue as catalogue_module
from cramer_peft.recsys.data.catalogue import Catalogue, nearest

pytest.importorskip("pandas")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def catalogue(*titles: str) -> Catalogue:
    ids = tuple(f"id{index}" for index in range(len(titles)))
    return Catalogue(ids, titles, (), torch.zeros(len(titles), 0, dtype=torch.bool))


def small() -> Catalogue:
    matrix = torch.tensor([[True, False], [True, True]])
    return Catalogue(("1", "2"), ("One", "Two"), ("Comedy", "Drama"), matrix)


def test_index_of_and_attribute_names() -> None:
    assert small().index_of("2") == 1
    assert small().attribute_names(0) == ("Comedy",)
    assert small().attribute_names(1) == ("Comedy", "Drama")
    assert len(small()) == 2


def test_index_of_unknown() -> None:
    with pytest.raises(DataError, match=r"item_id '22'.*Nearest: '2'"):
        small().index_of("22")


@pytest.mark.parametrize("index", [-1, 2])
def test_attribute_names_out_of_range(index: int) -> None:
    with pytest.raises(DataError, match="expected 0 to 1"):
        small().attribute_names(index)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("matrix, the", 0),
        ("The Matrix", 0),
        ("MATRIX,  The ", 0),
        ("Matrix", 0),
        ("Alien", 1),
        ("aliens", 2),
        ("heat", 3),
        ("Godfather", 5),
        ("wind", 4),
    ],
)
def test_find_title(text: str, index: int) -> None:
    titles = ("Matrix, The", "Alien", "Aliens", "Heat", "Gone with the Wind", "The Godfather")
    assert catalogue(*titles).find_title(text) == index


def test_find_title_prefers_a_start_to_a_part() -> None:
    assert catalogue("Body Heat", "Heat Wave").find_title("heat") == 1


def test_find_title_nothing_found_lists_three() -> None:
    with pytest.raises(DataError, match="No title matches 'Alein'") as caught:
        catalogue("Alien", "Aliens", "Heat", "Zorro").find_title("Alein")
    assert "'Alien', 'Aliens', 'Heat'" in str(caught.value)


def test_find_title_ambiguous_part_lists_the_candidates() -> None:
    with pytest.raises(DataError, match="2 titles match 'star'") as caught:
        catalogue("Star Wars", "Star Trek", "Stir").find_title("star")
    assert "Stir" not in str(caught.value)


def test_find_title_shared_by_two_items_names_their_ids() -> None:
    with pytest.raises(DataError, match="2 items have the title 'sabrina': item_id 'id0', 'id2'"):
        catalogue("Sabrina", "Heat", "Sabrina").find_title("sabrina")


def test_find_title_blank() -> None:
    with pytest.raises(DataError, match="blank"):
        small().find_title("  ")


@pytest.mark.parametrize(
    ("ids", "titles", "attributes", "shape", "message"),
    [
        (("1", "1"), ("a", "b"), (), (2, 0), "item_ids: '1' more than once"),
        (("1",), ("a", "b"), (), (1, 0), "titles: found 2"),
        (("1",), ("a",), ("b", "a"), (1, 2), "attributes: not sorted"),
        (("1",), ("a",), ("b", "b"), (1, 2), "attributes: 'b' more than once"),
        (("1",), ("a",), ("b",), (2, 1), r"found torch.bool of shape \(2, 1\)"),
        ((1,), ("a",), (), (1, 0), r"item_ids\[0\]: found int"),
        (("1",), ["a"], (), (1, 0), "titles: found list"),
        (("1",), ("\ud800",), (), (1, 0), "cannot be written as UTF-8"),
    ],
)
def test_catalogue_is_checked(
    ids: tuple[str, ...],
    titles: tuple[str, ...],
    attributes: tuple[str, ...],
    shape: tuple[int, int],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        Catalogue(ids, titles, attributes, torch.zeros(shape, dtype=torch.bool))


def test_catalogue_needs_bool() -> None:
    with pytest.raises(DataError, match=r"expected torch.bool"):
        Catalogue(("1",), ("a",), ("x",), torch.zeros(1, 1))


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    ids = draw(st.lists(st.text(), unique=True, max_size=6))
    names = sorted(draw(st.lists(st.text(), unique=True, max_size=5)))
    titles = draw(st.lists(st.text(), min_size=len(ids), max_size=len(ids)))
    cells = st.lists(st.booleans(), min_size=len(ids) * len(names), max_size=len(ids) * len(names))
    matrix = torch.tensor(draw(cells), dtype=torch.bool).reshape(len(ids), len(names))
    numbers = st.lists(st.floats(allow_infinity=False), min_size=len(ids), max_size=len(ids))
    texts = st.lists(st.text(), min_size=len(ids), max_size=len(ids)).map(tuple)
    columns = draw(st.dictionaries(st.text(), texts, max_size=3)), draw(st.dictionaries(st.text(), numbers, max_size=3))
    tensors = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns[1].items()}
    return Catalogue(tuple(ids), tuple(titles), tuple(names), matrix, None, columns[0], tensors)


@given(original=catalogues())
def test_save_then_load_gives_the_same(original: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.json"
    original.save(path)
    loaded = Catalogue.load(path)
    assert loaded.item_ids == original.item_ids
    assert loaded.titles == original.titles
    assert loaded.attributes == original.attributes
    assert torch.equal(loaded.item_attributes, original.item_attributes)
    assert loaded.texts == original.texts
    assert loaded.digests == original.digests
    torch.testing.assert_close(dict(loaded.numbers), dict(original.numbers), rtol=0, atol=0, equal_nan=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["catalogue.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalogue.json"
    small().save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        catalogue("other").save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def saved(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    path = tmp_path / "catalogue.json"
    small().save(path)
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "format is 'other'"),
        ("version", 2, "version is 2"),
        ("version", True, "version is True"),
        ("item_ids", "12", "item_ids: found str"),
        ("item_ids", ["1", 2], r"item_ids\[1\]: found int"),
        ("item_ids", ["1", "1"], "item_ids: '1' more than once"),
        ("titles", ["One"], "titles: found 1"),
        ("titles", ["One", None], r"titles\[1\]: found NoneType"),
        ("titles", ["One", "\ud800"], "UTF-8.*surrogates"),
        ("attributes", ["Drama", "Comedy"], "not sorted"),
        ("attributes", {"Comedy": 0}, "attributes: found dict"),
        ("item_attributes", [[0]], "found 1 entries, expected a list of 2"),
        ("item_attributes", "x", "found str"),
        ("item_attributes", [[0], [2]], r"item_attributes\[1\]"),
        ("item_attributes", [[-1], []], r"item_attributes\[0\]"),
        ("item_attributes", [[0, 0], []], r"item_attributes\[0\]"),
        ("item_attributes", [[1, 0], []], r"item_attributes\[0\]"),
        ("item_attributes", [[True], []], r"item_attributes\[0\]"),
        ("item_attributes", [[0.0], []], r"item_attributes\[0\]"),
        ("item_attributes", [3, []], r"item_attributes\[0\]"),
        ("extra", 1, "not expected: 'extra'"),
        ("texts", [], "texts: found list, expected an object of lists"),
        ("texts", {"tags": "ab"}, "texts: found str, expected an object of lists"),
        ("texts", {"tags": ["a"]}, r"texts\['tags'\]: found 1, expected one for each of the 2"),
        ("texts", {"tags": ["a", None]}, r"texts\['tags'\]\[1\]: found NoneType"),
        ("numbers", None, "numbers: found NoneType, expected an object"),
        ("numbers", {"year": [1, True]}, r"numbers\['year'\]\[1\]: found bool, expected a number or null"),
        ("numbers", {"year": [1, "2"]}, r"numbers\['year'\]\[1\]: found str"),
        ("numbers", {"year": [1, [2]]}, r"numbers\['year'\]\[1\]: found list"),
        ("numbers", {"year": [1, 2, 3]}, r"numbers\['year'\]: found 3, expected one for each"),
    ],
)
def test_load_refuses_what_save_does_not_write(tmp_path: Path, key: str, value: object, message: str) -> None:
    path, document = saved(tmp_path)
    write(path, json.dumps({**document, key: value}))
    with pytest.raises(DataError, match=message) as caught:
        Catalogue.load(path)
    assert "catalogue.json" in str(caught.value)


def described(ids: str, texts: dict[str, tuple[str, ...]], **numbers: list[float]) -> Catalogue:
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in numbers.items()}
    none = torch.zeros(len(ids), 0, dtype=torch.bool)
    return Catalogue(tuple(ids), tuple(ids.upper()), (), none, texts=texts, numbers=columns)


def test_columns_are_checked() -> None:
    none, double = torch.zeros(1, 0, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    cases: list[tuple[Any, Any, str]] = [
        ([], {}, "texts: found list, expected a mapping"),
        ({1: ("a",)}, {}, r"names of texts\[0\]: found int"),
        ({"t": ["a"]}, {}, r"texts\['t'\]: found list, expected a tuple"),
        ({"t": ("\ud800",)}, {}, "cannot be written as UTF-8"),
        ({}, {"n": [1.0]}, r"numbers\['n'\]: found list, expected torch.float64"),
        ({}, {"n": double.float()}, r"found torch.float32 of shape \(1,\)"),
        ({}, {"n": double.view(1, 1)}, r"of shape \(1, 1\), expected torch.float64 of shape \(items,\)"),
        ({}, {"n": double + torch.inf}, "found an infinite number"),
        ({}, {"n": double.repeat(2)}, "found 2, expected one for each of the 1 item_ids"),
    ]
    for texts, numbers, message in cases:
        with pytest.raises(DataError, match=message):
            Catalogue(("1",), ("a",), (), none, texts=texts, numbers=numbers)
    with pytest.raises(DataError, match="counts: found -1"):
        small().with_popularity([1, -1])
    with pytest.raises(DataError, match=r"numbers\['popularity'\]: found 3"):
        small().with_popularity([1, 2, 3])


def test_files_and_digests_without_columns_are_as_before(tmp_path: Path) -> None:
    path, document = saved(tmp_path)
    assert "texts" not in document
    assert path.read_text() == (
        '{"format":"cramer-peft-catalogue","version":1,"item_ids":["1","2"],"titles":["One","Two"],'
        '"attributes":["Comedy","Drama"],"item_attributes":[[0],[0,1]]}'
    )
    plain, grown = small().digests, small().with_items(described("3", {}))
    assert plain["content"].startswith("e3db1020")
    assert grown.digests["content"].startswith("b0ece4ff")
    counted = small().with_popularity([2, 0])
    assert (counted.digests["content"] != plain["content"], counted.digests["item_ids"]) == (True, plain["item_ids"])
    counted.save(path)
    assert json.loads(path.read_text())["numbers"] == {"popularity": [2.0, 0.0]}


def test_new_items_bring_their_columns() -> None:
    known = described("ab", {"tags": ("x", "y")}, year=[1990, 2000]).with_popularity([3, 4])
    grown = known.with_items(described("c", {"text": ("z",)}, year=[2010], price=[5], popularity=[9]))
    assert grown.texts == {"tags": ("x", "y", ""), "text": ("", "", "z")}
    nan = torch.nan
    expected = {"year": [1990.0, 2000, 2010], "popularity": [3.0, 4, nan], "price": [nan, nan, 5.0]}
    columns = {name: torch.tensor(column, dtype=torch.float64) for name, column in expected.items()}
    torch.testing.assert_close(dict(grown.numbers), columns, equal_nan=True)
    assert grown.described == 2


def test_load_names_missing_fields(tmp_path: Path) -> None:
    path, document = saved(tmp_path)
    del document["titles"]
    write(path, json.dumps(document))
    with pytest.raises(DataError, match="missing: 'titles'"):
        Catalogue.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"{", "not a JSON file"),
        (b'{"format": "\xff"}', "not a JSON file"),
        (b"[" * 200_000, "not a JSON file"),
        (b"1" * 10_000, "JSON"),
        (b"[]", "found a JSON list, expected an object"),
    ],
)
def test_load_refuses_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Catalogue.load(write(tmp_path / "c.json", content))


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json does not exist"):
        Catalogue.load(tmp_path / "absent.json")


def test_size_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved(tmp_path)
    monkeypatch.setattr(catalogue_module, "MAX_CATALOGUE_CELLS", 3)
    with pytest.raises(DataError, match="cells"):
        Catalogue.load(path)
    monkeypatch.setattr(catalogue_module, "MAX_CATALOGUE_BYTES", 20)
    with pytest.raises(DataError, match="larger than the 20 bytes"):
        Catalogue.load(path)
    with pytest.raises(DataError, match="more than the 20"):
        small().save(path)


def test_of_many_titles_those_with_most_letters_in_common_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [f"{word} {number}" for word in ("Night", "Harbour", "Castle") for number in range(40)]
    expected = [nearest(text, titles) for text in ("harbor 17", "Knight 3", "x")]
    monkeypatch.setattr(catalogue_module, "_NEAR", 50)
    assert [nearest(text, titles) for text in ("harbor 17", "Knight 3")] == expected[:2]
    assert nearest("x", titles).count("'") == 6


def test_near_titles_are_sought_by_their_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    search = difflib.get_close_matches

    def counted(word: str, possibilities: Sequence[str], **options: Any) -> list[str]:
        compared.extend([word, *possibilities])
        return search(word, possibilities, **options)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    titles = ("a" * 50_000, "Alien " + "b" * 50_000, "Solaris")
    catalogue = Catalogue(("1", "2", "3"), titles, ("x",), torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(DataError, match="Nearest: 'Solaris'"):
        catalogue.find_title("Solaria")
    with pytest.raises(DataError, match="No title matches"):
        catalogue.find_title("c" * 50_000)
    assert max(map(len, compared)) <= 200
