import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data import catalogue as catalogue_module
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.interactions import Interactions, load_interactions

pytest.importorskip("pandas")

ITEMS = "item_id:token\ttitle:token_seq\tgenres:token_seq\n"
INTER = "user_id:token\titem_id:token\ttimestamp:float\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_pair(
    folder: Path,
    interactions: list[tuple[str, str, float | str]],
    items: str = ITEMS + "a\tAlpha\tX Y\nb\tBeta\tX\nc\tGamma\tY\nd\tDelta\t\n",
) -> Path:
    write(folder / "data.item", items)
    rows = "".join("\t".join(map(str, row)) + "\n" for row in interactions)
    write(folder / "data.inter", INTER + rows)
    return folder


def three_items(user: str = "u") -> list[tuple[str, str, float | str]]:
    return [(user, "a", 1), (user, "b", 2), (user, "c", 3)]


def lists(interactions: Interactions) -> list[list[int]]:
    return [sequence.tolist() for sequence in interactions.sequences]


# --- read_atomic


def test_reads_types_and_keeps_tokens_as_text(tmp_path: Path) -> None:
    header = "i:token\ts:token_seq\tf:float\tv:float_seq\tt:str\n"
    frame = read_atomic(write(tmp_path / "x.item", header + "007\ta b\t1.5\t1 2\tp|q r\n"))
    assert list(frame.columns) == ["i", "s", "f", "v", "t"]
    assert frame.iloc[0].tolist() == ["007", "a b", 1.5, "1 2", "p|q r"]
    assert frame["f"].dtype == "float64"
    assert all(isinstance(frame[name].iloc[0], str) for name in "isvt")


def test_crlf_bom_and_blank_lines_at_the_end(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfi:token\tf:float\r\nx\t1\r\ny\t\r\n\r\n"
    frame = read_atomic(write(tmp_path / "x.item", data))
    assert list(frame.columns) == ["i", "f"]
    assert frame["i"].tolist() == ["x", "y"]
    assert frame["f"][0] == 1.0
    assert math.isnan(frame["f"][1])


def test_quotes_and_unusual_line_separators_are_text(tmp_path: Path) -> None:
    titles = ['"open', "a\u2028b", "c\x0bd", "NA", "'q'"]
    body = "".join(f"{title}\t1\n" for title in titles)
    frame = read_atomic(write(tmp_path / "x.item", "t:token\tf:float\n" + body))
    assert frame["t"].tolist() == titles


def test_header_without_rows(tmp_path: Path) -> None:
    frame = read_atomic(write(tmp_path / "x.item", "t:token\tf:float"))
    assert len(frame) == 0
    assert frame["f"].dtype == "float64"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"user_id\titem_id\n1\t2\n", r"line 1: field 'user_id'.*name:type"),
        (b":token\n1\n", "name:type"),
        (b"a:token\tb:integer\n1\t2\n", "line 1: field 'b' has the unknown type 'integer'"),
        (b"a:token\ta:float\n1\t2\n", "'a' is there twice"),
        (b"a:token\tb:token\nx\ty\nx\n", "line 3: found 1 .*expected 2"),
        (b"a:token\tb:token\nx\ty\tz\n", "line 2: found 3 .*expected 2"),
        (b"a:token\tb:token\n\nx\ty\n", "line 2: found 1 "),
        (b"a:token\tb:float\nx\t1\nx\tsoon\n", "line 3: field 'b' holds 'soon'"),
        (b"a:token\nx\n\xe9t\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "bad.inter", content)
    with pytest.raises(DataError, match=message) as caught:
        read_atomic(path)
    assert "bad.inter" in str(caught.value)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an ordinary file"):
        read_atomic(tmp_path)
    with pytest.raises(DataError, match=r"absent\.inter does not exist"):
        read_atomic(tmp_path / "absent.inter")


# --- Catalogue


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
    return Catalogue(tuple(ids), tuple(titles), tuple(names), matrix)


@given(original=catalogues())
def test_save_then_load_gives_the_same(original: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.json"
    original.save(path)
    loaded = Catalogue.load(path)
    assert loaded.item_ids == original.item_ids
    assert loaded.titles == original.titles
    assert loaded.attributes == original.attributes
    assert torch.equal(loaded.item_attributes, original.item_attributes)
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
    ],
)
def test_load_refuses_what_save_does_not_write(tmp_path: Path, key: str, value: object, message: str) -> None:
    path, document = saved(tmp_path)
    write(path, json.dumps({**document, key: value}))
    with pytest.raises(DataError, match=message) as caught:
        Catalogue.load(path)
    assert "catalogue.json" in str(caught.value)


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


# --- load_interactions


def test_loads_a_folder_and_a_pair(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items())
    for source in (folder, str(folder), (folder / "data.inter", folder / "data.item")):
        items, interactions = load_interactions(source, min_attribute_items=1)
        assert items.item_ids == ("a", "b", "c", "d")
        assert items.titles == ("Alpha", "Beta", "Gamma", "Delta")
        assert items.attributes == ("X", "Y")
        assert items.item_attributes.tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
        assert interactions.user_ids == ("u",)
        assert interactions.sequences[0].dtype == torch.long
        assert lists(interactions) == [[0, 1, 2]]
        assert (interactions.dropped_users, interactions.dropped_repeats) == (0, 0)


def test_crlf_folder(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items())
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    items, interactions = load_interactions(folder, min_attribute_items=1)
    assert items.attributes == ("X", "Y")
    assert lists(interactions) == [[0, 1, 2]]


def test_sorted_by_time_and_ties_keep_the_order_of_lines(tmp_path: Path) -> None:
    rows: list[tuple[str, str, float | str]] = [
        ("v", "d", 9),
        ("u", "c", 5),
        ("v", "b", 9),
        ("u", "b", 5),
        ("u", "d", 1),
        ("v", "a", 9),
        ("u", "a", 5),
    ]
    _, interactions = load_interactions(write_pair(tmp_path, rows))
    assert interactions.user_ids == ("v", "u")
    assert lists(interactions) == [[3, 1, 0], [3, 2, 1, 0]]


def test_repeats_keep_the_first_in_time(tmp_path: Path) -> None:
    rows = [("u", "a", 9), *three_items(), ("u", "b", 0.5), ("u", "b", 2)]
    _, interactions = load_interactions(write_pair(tmp_path, rows))
    assert lists(interactions) == [[1, 0, 2]]
    assert interactions.dropped_repeats == 3


def test_short_users_are_dropped_and_repeats_do_not_count(tmp_path: Path) -> None:
    rows = [("s", "a", 1), ("s", "b", 2), ("s", "a", 3), *three_items()]
    _, interactions = load_interactions(write_pair(tmp_path, rows))
    assert interactions.user_ids == ("u",)
    assert interactions.dropped_users == 1
    _, everybody = load_interactions(tmp_path, min_interactions=1)
    assert everybody.user_ids == ("s", "u")
    assert everybody.dropped_users == 0


user_rows = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 3)), min_size=1)


@given(rows=user_rows)
def test_sequences_agree_with_a_plain_loop(
    rows: list[tuple[str, str, float | str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected: dict[str, list[int]] = {user: [] for user, _, _ in rows}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        if "abcd".index(item) not in expected[user]:
            expected[user].append("abcd".index(item))
    folder = write_pair(tmp_path_factory.mktemp("data"), rows)
    _, interactions = load_interactions(folder, min_interactions=1)
    assert interactions.user_ids == tuple(expected)
    assert lists(interactions) == list(expected.values())
    assert interactions.dropped_repeats == len(rows) - sum(map(len, expected.values()))


def test_rare_and_empty_attributes_are_dropped(tmp_path: Path) -> None:
    rows = [f"{i}\tT{i}\t{'Often Rare' if i < 4 else 'Often'}" for i in range(5)]
    rows += [f"{i}\tT{i}\tunknown" for i in range(5, 10)]
    rows += [f"{i}\tT{i}\t(no genres listed)" for i in range(10, 16)]
    rows += ["a\tA\tOften Often", "b\tB\t", "c\t \tunknown Often"]
    folder = write_pair(tmp_path, three_items(), ITEMS + "\n".join(rows))
    items, _ = load_interactions(folder)
    assert items.attributes == ("Often",)
    assert items.item_attributes.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 16, 18]
    assert items.titles[-1] == "c"  # a blank title gives way to the id


@pytest.mark.parametrize(
    ("kind", "cell", "separator", "expected"),
    [
        ("token_seq", "Sci-Fi Children's", None, ("Children's", "Sci-Fi")),
        ("token", "Sci-Fi Drama", None, ("Drama", "Sci-Fi")),
        ("str", "Hair Care| Gels, Lotions ", None, ("Gels, Lotions", "Hair Care")),
        ("str", "A, B|C", ", ", ("A", "B|C")),
    ],
)
def test_separators(tmp_path: Path, kind: str, cell: str, separator: str | None, expected: tuple[str, ...]) -> None:
    text = f"item_id:token\tname:str\tclass:{kind}\na\tA\t{cell}\nb\tB\t\nc\tC\t\n"
    folder = write_pair(tmp_path, three_items(), text)
    items, _ = load_interactions(folder, attribute_separator=separator, min_attribute_items=1)
    assert items.attributes == expected
    assert items.titles == ("A", "B", "C")


def test_named_columns(tmp_path: Path) -> None:
    text = "item_id:token\ttitle:str\tt2:str\tgenres:str\tg2:str\n"
    text += "".join(f"{i}\tno\tyes {i}\tno\tyes\n" for i in "abc")
    folder = write_pair(tmp_path, three_items(), text)
    items, _ = load_interactions(folder, title_column="t2", attribute_column="g2", min_attribute_items=1)
    assert items.titles == ("yes a", "yes b", "yes c")
    assert items.attributes == ("yes",)


def test_item_id_is_the_last_choice_of_a_title(tmp_path: Path) -> None:
    text = "item_id:token\ttags:str\na\tx\nb\tx\nc\tx\n"
    items, _ = load_interactions(write_pair(tmp_path, three_items(), text))
    assert items.titles == ("a", "b", "c")


def test_folder_without_a_file_or_with_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        load_interactions(tmp_path / "absent")
    with pytest.raises(DataError, match=r"one \*\.inter file, found 0 \(no files at all\)"):
        load_interactions(tmp_path)
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=r"found 0 \('notes.txt'\)"):
        load_interactions(tmp_path)
    write_pair(tmp_path, three_items())
    write(tmp_path / "other.item", "x")
    with pytest.raises(DataError, match=r"found 2 \('data.item', 'other.item'\)"):
        load_interactions(tmp_path)


def test_pair_of_wrong_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pair"):
        load_interactions((tmp_path,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id:token\ttitle:str\tgenres:str\n", "fields missing: item_id; fields there: id, title"),
        ("item_id:token\ttitle:str\tkind:str\n", "missing: genres; .*attribute_column"),
        ("item_id:float\ttitle:str\tgenres:str\n", "'item_id' has type float, expected token"),
        ("item_id:token\ttitle:str\tgenres:float\n", "'genres' has type float, expected text"),
    ],
)
def test_item_fields(tmp_path: Path, header: str, message: str) -> None:
    folder = write_pair(tmp_path, three_items(), header)
    with pytest.raises(DataError, match=message):
        load_interactions(folder)


def test_missing_title_column_says_how_to_name_it(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items())
    with pytest.raises(DataError, match=r"missing: headline; .*title_column"):
        load_interactions(folder, title_column="headline")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user:token\titem_id:token\ttime:float\n", "missing: user_id, timestamp; .*there: user"),
        ("user_id:token\titem_id:token\ttimestamp:token\n", "'timestamp' has type token"),
        ("user_id:float\titem_id:token\ttimestamp:float\n", "'user_id' has type float"),
    ],
)
def test_inter_fields(tmp_path: Path, header: str, message: str) -> None:
    folder = write_pair(tmp_path, three_items())
    write(folder / "data.inter", header)
    with pytest.raises(DataError, match=message):
        load_interactions(folder)


@pytest.mark.parametrize("second", ["a\tAlpha\tX", "a\tOther\tY"])
def test_an_item_twice(tmp_path: Path, second: str) -> None:
    folder = write_pair(tmp_path, three_items(), f"{ITEMS}a\tAlpha\tX\nb\tB\t\n{second}\nc\tC\t\n")
    with pytest.raises(DataError, match=r"line 4: 1 values of item_id .*more than once: 'a'"):
        load_interactions(folder)


def test_unknown_items(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("u", "zz", 4), ("u", "y", 5), ("v", "y", 6)])
    with pytest.raises(DataError, match=r"line 5: 2 values .*data.item: 'zz', 'y'"):
        load_interactions(folder)


@pytest.mark.parametrize("value", ["", "nan", "inf"])
def test_timestamps_must_be_finite(tmp_path: Path, value: str) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("u", "d", value)])
    with pytest.raises(DataError, match=r"line 5: timestamp is (nan|inf)"):
        load_interactions(folder)


def test_blank_ids(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("", "d", 1)])
    with pytest.raises(DataError, match="line 5: field 'user_id' is blank"):
        load_interactions(folder)
    write_pair(tmp_path, three_items(), ITEMS + "a\tA\t\n\tB\t\n")
    with pytest.raises(DataError, match="line 3: field 'item_id' is blank"):
        load_interactions(folder)


@pytest.mark.parametrize("rows", [[], [("u", "a", 1), ("v", "b", 2)]])
def test_nobody_remains(tmp_path: Path, rows: list[tuple[str, str, float | str]]) -> None:
    with pytest.raises(DataError, match=rf"none of {len(rows)} users has 3 or more"):
        load_interactions(write_pair(tmp_path, rows))


def test_arguments_are_checked_before_the_files(tmp_path: Path) -> None:
    for name in ("min_interactions", "min_attribute_items"):
        with pytest.raises(DataError, match=f"{name}: found 0"):
            load_interactions(tmp_path / "absent", **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="attribute_separator: found an empty string"):
        load_interactions(write_pair(tmp_path, three_items()), attribute_separator="")


def test_interactions_lengths_are_checked() -> None:
    with pytest.raises(DataError, match="sequences: found 0, expected one for each of the 1"):
        Interactions(("u",), ())
