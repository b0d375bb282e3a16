from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.columns import Columns
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.interactions import Interactions, read_folder, read_pair

pytest.importorskip("pandas")
ITEMS = "item_id:token\ttitle:token_seq\tgenres:token_seq\n"
INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
user_rows = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(0, 3)), min_size=1)


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


def test_loads_a_folder(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items())
    for source in (folder, str(folder)):
        items, interactions = load_dataset(source, min_attribute_items=1)
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
    items, interactions = load_dataset(folder, min_attribute_items=1)
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
    _, interactions = load_dataset(write_pair(tmp_path, rows))
    assert interactions.user_ids == ("v", "u")
    assert lists(interactions) == [[3, 1, 0], [3, 2, 1, 0]]


def test_repeats_keep_the_first_in_time(tmp_path: Path) -> None:
    rows = [("u", "a", 9), *three_items(), ("u", "b", 0.5), ("u", "b", 2)]
    _, interactions = load_dataset(write_pair(tmp_path, rows))
    assert lists(interactions) == [[1, 0, 2]]
    assert interactions.dropped_repeats == 3


def test_short_users_are_dropped_and_repeats_do_not_count(tmp_path: Path) -> None:
    rows = [("s", "a", 1), ("s", "b", 2), ("s", "a", 3), *three_items()]
    _, interactions = load_dataset(write_pair(tmp_path, rows))
    assert interactions.user_ids == ("u",)
    assert interactions.dropped_users == 1
    _, everybody = load_dataset(tmp_path, min_interactions=1)
    assert everybody.user_ids == ("s", "u")
    assert everybody.dropped_users == 0


@given(rows=user_rows)
def test_sequences_agree_with_a_plain_loop(
    rows: list[tuple[str, str, float | str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected: dict[str, list[int]] = {user: [] for user, _, _ in rows}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        if "abcd".index(item) not in expected[user]:
            expected[user].append("abcd".index(item))
    folder = write_pair(tmp_path_factory.mktemp("data"), rows)
    _, interactions = load_dataset(folder, min_interactions=1)
    assert interactions.user_ids == tuple(expected)
    assert lists(interactions) == list(expected.values())
    assert interactions.dropped_repeats == len(rows) - sum(map(len, expected.values()))


def test_rare_and_empty_attributes_are_dropped(tmp_path: Path) -> None:
    rows = [f"{i}\tT{i}\t{'Often Rare' if i < 4 else 'Often'}" for i in range(5)]
    rows += [f"{i}\tT{i}\tunknown" for i in range(5, 10)]
    rows += [f"{i}\tT{i}\t(no genres listed)" for i in range(10, 16)]
    rows += ["a\tA\tOften Often", "b\tB\t", "c\t \tunknown Often"]
    folder = write_pair(tmp_path, three_items(), ITEMS + "\n".join(rows))
    items, _ = load_dataset(folder)
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
    items, _ = load_dataset(folder, attribute_separator=separator, min_attribute_items=1)
    assert items.attributes == expected
    assert items.titles == ("A", "B", "C")


def test_named_columns(tmp_path: Path) -> None:
    text = "item_id:token\ttitle:str\tt2:str\tgenres:str\tg2:str\n"
    text += "".join(f"{i}\tno\tyes {i}\tno\tyes\n" for i in "abc")
    folder = write_pair(tmp_path, three_items(), text)
    items, _ = load_dataset(folder, title_column="t2", attribute_column="g2", min_attribute_items=1)
    assert items.titles == ("yes a", "yes b", "yes c")
    assert items.attributes == ("yes",)


def test_item_id_is_the_last_choice_of_a_title(tmp_path: Path) -> None:
    text = "item_id:token\ttags:str\na\tx\nb\tx\nc\tx\n"
    items, _ = load_dataset(write_pair(tmp_path, three_items(), text))
    assert items.titles == ("a", "b", "c")


def test_folder_without_a_file_or_with_several(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nor a folder"):
        load_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match=r"one \*\.inter file, found 0 \(no files at all\)"):
        load_dataset(tmp_path)
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=r"found 0 \('notes.txt'\)"):
        load_dataset(tmp_path)
    write_pair(tmp_path, three_items())
    write(tmp_path / "other.item", "x")
    with pytest.raises(DataError, match=r"found 2 \('data.item', 'other.item'\)"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("key:token\ttitle:str\tgenres:str\n", "columns missing: item_id; columns there: 'key', 'title'"),
        ("item_id:token\ttitle:str\tkind:str\n", "missing: genres; .*attribute_column"),
        ("item_id:float\ttitle:str\tgenres:str\n", "'item_id' has type float, expected token"),
        ("item_id:token\ttitle:str\tgenres:float\n", "'genres' has type float, expected text"),
    ],
)
def test_item_fields(tmp_path: Path, header: str, message: str) -> None:
    folder = write_pair(tmp_path, three_items(), header)
    with pytest.raises(DataError, match=message):
        load_dataset(folder)


def test_missing_title_column_says_how_to_name_it(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items())
    with pytest.raises(DataError, match=r"missing: headline; .*title_column"):
        load_dataset(folder, title_column="headline")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("who:token\titem_id:token\twhen:float\n", "missing: user_id, timestamp; .*'who'.*--user.* and .*--time"),
        ("user_id:token\titem_id:token\ttimestamp:float_seq\n", "'timestamp' has type float_seq"),
        ("user_id:float\titem_id:token\ttimestamp:float\n", "'user_id' has type float"),
    ],
)
def test_inter_fields(tmp_path: Path, header: str, message: str) -> None:
    folder = write_pair(tmp_path, three_items())
    write(folder / "data.inter", header)
    with pytest.raises(DataError, match=message):
        load_dataset(folder)


def test_an_item_twice(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items(), f"{ITEMS}a\tAlpha\tX\nb\tB\t\na\tOther\tY\nc\tC\t\n")
    with pytest.raises(DataError, match=r"line 4: 1 value of item_id more than once: 'a'. Keep one line per item"):
        load_dataset(folder)


def test_a_row_of_items_that_repeats_another_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, three_items(), f"{ITEMS}a\tAlpha\tX\nb\tB\t\na\tAlpha\tX\nc\tC\t\n")
    reading = read_pair(*read_folder(folder), Columns(min_attribute_items=1), 3)
    assert reading.items.catalogue.item_ids == ("a", "b", "c")
    assert reading.items.catalogue.titles == ("Alpha", "B", "C")
    assert "1 line of items that repeat another word for word left out" in reading.lines


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    rows = [*three_items(), ("", "a", 9), ("w", "b", ""), ("w", "", 3)]
    folder = write_pair(tmp_path, rows, f"{ITEMS}a\tAlpha\tX\na\tOther\tX\n")
    with pytest.raises(DataError) as caught:
        load_dataset(folder)
    lines = str(caught.value).splitlines()
    for line, part in zip(
        lines,
        (
            "line 7: column 'item_id'",
            "line 5: column 'user_id'",
            "line 6: timestamp is blank",
            "line 3: 1 value of item_id more than once",
        ),
        strict=True,
    ):
        assert part in line


def test_unknown_items(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("u", "zz", 4), ("u", "y", 5), ("v", "y", 6)])
    with pytest.raises(DataError, match=r"line 5: 2 values .*data.item: 'zz', 'y'"):
        load_dataset(folder)


@pytest.mark.parametrize("value", ["", "nan", "inf"])
def test_timestamps_must_be_finite(tmp_path: Path, value: str) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("u", "d", value)])
    with pytest.raises(DataError, match=r"line 5: timestamp is (blank|nan|inf)"):
        load_dataset(folder)


def test_blank_ids(tmp_path: Path) -> None:
    folder = write_pair(tmp_path, [*three_items(), ("", "d", 1)])
    with pytest.raises(DataError, match="line 5: column 'user_id' is blank"):
        load_dataset(folder)
    write_pair(tmp_path, three_items(), ITEMS + "a\tA\t\n\tB\t\n")
    with pytest.raises(DataError, match="line 3: column 'item_id' is blank"):
        load_dataset(folder)


@pytest.mark.parametrize("attribute", ["&nbsp;", "_", "&#32;_&emsp;"])
def test_an_attribute_without_a_word(tmp_path: Path, attribute: str) -> None:
    items = f"item_id:token\ttitle:token_seq\tmood:str\na\tA\tcalm\nb\tB\tcalm|{attribute}\nc\tC\t{attribute}\n"
    folder = write_pair(tmp_path, three_items(), items)
    with pytest.raises(DataError, match=r"data.item, line 3: column 'mood' holds the attribute .* blank"):
        load_dataset(folder, attribute_column="mood", min_attribute_items=2)
    catalogue, _ = load_dataset(folder, attribute_column="mood", min_attribute_items=3)
    assert catalogue.attributes == ()  # one that is left out anyway does no harm


@pytest.mark.parametrize("rows", [[], [("u", "a", 1), ("v", "b", 2)]])
def test_nobody_remains(tmp_path: Path, rows: list[tuple[str, str, float | str]]) -> None:
    with pytest.raises(DataError, match=rf"none of {len(rows)} users has 3 or more"):
        load_dataset(write_pair(tmp_path, rows))


def test_arguments_are_checked_before_the_files(tmp_path: Path) -> None:
    for name in ("min_interactions", "min_attribute_items"):
        with pytest.raises(DataError, match=f"{name}: found 0"):
            load_dataset(tmp_path / "absent", **{name: 0})  # type: ignore[arg-type]
        for value in ("3", 3.0, True):
            with pytest.raises(DataError, match=rf"{name}: found .*, expected a whole number"):
                load_dataset(tmp_path / "absent", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="attribute_separator: found an empty string"):
        load_dataset(write_pair(tmp_path, three_items()), attribute_separator="")


def test_interactions_lengths_are_checked() -> None:
    with pytest.raises(DataError, match="sequences: found 0, expected one for each of the 1"):
        Interactions(("u",), ())


UNUSED = [("float", "—"), ("float_seq", "1 x"), ("float", ""), ("double", "cheap"), ("token", "nan")]


@pytest.mark.parametrize(("kind", "cell"), UNUSED)
def test_fields_that_nothing_uses_may_hold_anything(tmp_path: Path, kind: str, cell: str) -> None:
    text = f"cost:{kind}\titem_id:token\ttitle:str\tgenres:str\n" + "".join(f"{cell}\t{i}\tT {i}\tX\n" for i in "abc")
    write(tmp_path / "d.item", text)
    rows = "".join(f"u\t{item}\t{time}\t{cell}\n" for time, item in enumerate("cab"))
    write(tmp_path / "d.inter", INTER.replace("\n", f"\trating:{kind}\n") + rows)
    items, interactions = load_dataset(tmp_path, min_attribute_items=1)
    assert (items.titles, items.attributes) == (("T a", "T b", "T c"), ("X",))
    assert lists(interactions) == [[2, 0, 1]]


def test_titles_are_taken_as_they_are_written(tmp_path: Path) -> None:
    text = "item_id:token\ttitle:float\tgenres:str\na\t1984\tX\nb\t2001\tX\nc\t\tX\n"
    items, _ = load_dataset(write_pair(tmp_path, three_items(), text))
    assert items.titles == ("1984", "2001", "c")


RATED = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"


def rated(folder: Path, *rows: str) -> Path:
    write_pair(folder, [])
    write(folder / "data.inter", RATED + "".join(row.replace(" ", "\t") + "\n" for row in rows))
    return folder


def test_a_least_rating_leaves_out_histories_and_targets(tmp_path: Path) -> None:
    folder = rated(tmp_path, "u a 1 5", "u b 2 1", "u c 3 4", "u b 5 4.0", "u d 4 3.9", "v a 1 2", "v b 2 5")
    _, everything = load_dataset(folder, min_interactions=1)
    assert (lists(everything), everything.dropped_ratings) == ([[0, 1, 2, 3], [0, 1]], 0)
    _, liked = load_dataset(folder, min_interactions=1, min_rating=4)
    assert lists(liked) == [[0, 2, 1], [1]]  # b counts from its second rating
    assert (liked.dropped_ratings, liked.dropped_users) == (3, 0)
    _, best = load_dataset(folder, min_interactions=1, min_rating=5)
    assert lists(best) == [[0], [1]]
    _, any_number = load_dataset(folder, min_interactions=1, min_rating=-3.5)
    assert lists(any_number) == lists(everything)


def test_a_least_rating_that_cannot_be_applied(tmp_path: Path) -> None:
    folder = rated(tmp_path, "u a 1 2", "u b 2 3", "u c 3 3")
    with pytest.raises(DataError, match=r"'rating' is from 2 to 3, expected values of min_rating=4 or more"):
        load_dataset(folder, min_rating=4)
    with pytest.raises(DataError, match=r"none of 1 users has 3 or more different items rated 3 or more"):
        load_dataset(folder, min_rating=3)
    for value in (float("nan"), float("inf"), True, "4"):
        with pytest.raises(DataError, match=r"min_rating: found .*, expected a finite number"):
            load_dataset(folder, min_rating=value)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"line 3: column 'rating' is blank.*min_rating=2"):
        load_dataset(rated(tmp_path, "u a 1 2", "u b 2 "), min_rating=2)
    with pytest.raises(DataError, match=r"line 2: column 'rating' holds 'good', which is not a number"):
        load_dataset(rated(tmp_path, "u a 1 good"), min_rating=2)
    with pytest.raises(DataError, match=r"missing: rating; columns there: 'user_id', .*min_rating=2"):
        load_dataset(write_pair(tmp_path, three_items()), min_rating=2)
    write(folder / "data.inter", RATED.replace("rating:float", "rating:token"))
    with pytest.raises(DataError, match="'rating' has type token, expected float"):
        load_dataset(folder, min_rating=2)


def test_attributes_and_titles_that_look_the_same_are_one(tmp_path: Path) -> None:
    items = ITEMS + "a\tCafe\u0301\tCom\u00e9die\nb\tBeta\tCome\u0301die\nc\tGamma\tCom\u00e9die\nd\tDelta\t\n"
    catalogue, _ = load_dataset(write_pair(tmp_path, three_items(), items), min_attribute_items=3)
    assert catalogue.attributes == ("Com\u00e9die",)
    assert catalogue.find_title("caf\u00e9") == 0


def test_too_many_attributes_are_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pair(tmp_path, three_items())
    monkeypatch.setattr("cramer_peft.recsys.data.catalogue.MAX_CATALOGUE_CELLS", 2)
    with pytest.raises(DataError, match=r"4 items × 2 attributes are more than 2 cells.*raise min"):
        load_dataset(folder, min_attribute_items=1)
