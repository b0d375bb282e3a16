from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import DataError
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.histories import seen_mask
from cramer_peft.recsys.data.interactions import Interactions
from cramer_peft.recsys.data.splits import TemporalSplit, leave_one_out, temporal_split

items = st.integers(0, 20)
quantile_pairs = st.tuples(st.sampled_from([0.2, 0.4, 0.5]), st.sampled_from([0.6, 0.7, 0.9]))
histories = st.integers(1, 3)


def make(sequences: list[list[int]]) -> Interactions:
    ids = tuple(f"u{index}" for index in range(len(sequences)))
    return Interactions(ids, tuple(torch.tensor(s, dtype=torch.long) for s in sequences))


def tensors(*rows: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row, dtype=torch.long) for row in rows)


@given(st.lists(st.lists(items, min_size=3, max_size=9), min_size=1, max_size=5))
def test_parts_make_up_the_sequence_again(sequences: list[list[int]]) -> None:
    split = leave_one_out(make(sequences))
    assert split.validation_target.dtype == split.test_target.dtype == torch.long
    assert split.validation_target.shape == split.test_target.shape == (len(sequences),)
    for row, sequence in enumerate(sequences):
        targets = [split.validation_target[row].item(), split.test_target[row].item()]
        assert split.train[row].tolist() + targets == sequence
        assert split.history("validation")[row].tolist() == sequence[:-2]
        assert split.history("test")[row].tolist() == sequence[:-1]


def test_short_sequence_and_no_users() -> None:
    with pytest.raises(DataError, match="user_id 'u1' has 2 items, expected 3"):
        leave_one_out(make([[1, 2, 3], [1, 2]]))
    with pytest.raises(DataError, match="no users"):
        leave_one_out(make([]))


def test_unknown_stage() -> None:
    with pytest.raises(DataError, match="stage: found 'train'"):
        leave_one_out(make([[1, 2, 3]])).history("train")  # type: ignore[arg-type]


def timed(rows: list[list[tuple[int, float]]]) -> Interactions:
    """Users of (item, time) pairs, which come in the order of the file."""
    rows = [sorted(row, key=lambda pair: pair[1]) for row in rows]
    plain = make([[item for item, _ in row] for row in rows])
    times = tuple(torch.tensor([time for _, time in row], dtype=torch.float64) for row in rows)
    return Interactions(plain.user_ids, plain.sequences, times=times)


@st.composite
def timelines(draw: st.DrawFn) -> Interactions:
    """A few users with many ties, who start at different times."""
    rows = []
    for user in range(draw(st.integers(2, 8))):
        sequence = draw(st.lists(items, min_size=1, max_size=9, unique=True))
        times = [float(user), *(draw(st.integers(user, 12)) for _ in sequence[1:])]
        rows.append(list(zip(sequence, times, strict=True)))
    return timed(rows)


def split_or_discard(interactions: Interactions, quantiles: tuple[float, float], *counts: int) -> TemporalSplit:
    try:
        return temporal_split(interactions, quantiles, *counts)
    except DataError:
        assume(False)
        raise


def moment(interactions: Interactions, user: int, item: int) -> float:
    return float(interactions.times[user][interactions.sequences[user].tolist().index(item)])


@given(timelines(), quantile_pairs, histories, st.integers(1, 3))
def test_nothing_of_the_future_is_before_a_cut(
    interactions: Interactions, quantiles: tuple[float, float], min_history: int, targets: int
) -> None:
    split = split_or_discard(interactions, quantiles, min_history, targets)
    first, second = split.cuts
    for user, sequence in zip(split.train_users.tolist(), split.train, strict=True):
        assert all(moment(interactions, user, item) < first for item in sequence.tolist())
    for user, target, history in zip(
        split.validation_users.tolist(), split.validation_target.tolist(), split.history("validation"), strict=True
    ):
        assert first <= moment(interactions, user, target) < second
        assert all(moment(interactions, user, item) < second for item in history.tolist())
    for user, target, history in zip(
        split.test_users.tolist(), split.test_target.tolist(), split.history("test"), strict=True
    ):
        assert moment(interactions, user, target) >= second
        if targets == 1:
            assert all(moment(interactions, user, item) < second for item in history.tolist())
        assert target not in history.tolist()


@given(timelines(), quantile_pairs, st.integers(0, 1000))
def test_what_is_fitted_does_not_depend_on_the_test(
    interactions: Interactions, quantiles: tuple[float, float], seed: int
) -> None:
    split = split_or_discard(interactions, quantiles, 1)
    shuffle = torch.Generator().manual_seed(seed)
    changed = []
    for sequence, times in zip(interactions.sequences, interactions.times, strict=True):
        future = (times >= split.cuts[1]).nonzero().flatten()
        replaced = sequence.clone()
        replaced[future] = 100 + torch.randperm(50, generator=shuffle)[: len(future)]
        changed.append(replaced)
    other = temporal_split(
        Interactions(interactions.user_ids, tuple(changed), times=interactions.times), quantiles, min_history=1
    )
    assert [row.tolist() for row in other.train] == [row.tolist() for row in split.train]
    assert torch.equal(other.validation_target, split.validation_target)
    assert [row.tolist() for row in other.history("validation")] == [
        row.tolist() for row in split.history("validation")
    ]
    assert [row.tolist() for row in other.history("test")] == [row.tolist() for row in split.history("test")]
    assert (other.test_target >= 100).all()


@given(timelines(), quantile_pairs, histories, st.integers(1, 3))
def test_everybody_is_accounted_for_and_has_history(
    interactions: Interactions, quantiles: tuple[float, float], min_history: int, targets: int
) -> None:
    split = split_or_discard(interactions, quantiles, min_history, targets)
    stages = (
        (split.validation, split.validation_users, split.history("validation"), split.cuts[0]),
        (split.test, split.test_users, split.history("test"), split.cuts[1]),
    )
    for counted, users, known, cut in stages:
        assert counted.users + counted.no_target + counted.short_history == len(interactions)
        assert counted.users == len(set(users.tolist()))
        assert all(1 <= users.tolist().count(user) <= targets for user in users.tolist())
        for user, history in zip(users.tolist(), known, strict=True):
            before = int((interactions.times[user] < cut).sum())
            assert len(history) >= before >= min_history
            assert interactions.sequences[user][: len(history)].tolist() == history.tolist()


@given(timelines(), quantile_pairs)
def test_same_in_same_out(interactions: Interactions, quantiles: tuple[float, float]) -> None:
    one = split_or_discard(interactions, quantiles, 1)
    two = temporal_split(interactions, quantiles, 1)
    assert one.cuts == two.cuts
    assert (one.validation, one.test) == (two.validation, two.test)
    for left, right in zip(one.train + one.test_history, two.train + two.test_history, strict=True):
        assert torch.equal(left, right)
    assert torch.equal(one.test_target, two.test_target)


@given(timelines(), quantile_pairs)
def test_share_before_each_cut(interactions: Interactions, quantiles: tuple[float, float]) -> None:
    split = split_or_discard(interactions, quantiles, 1)
    timeline = torch.cat(interactions.times)
    for quantile, cut in zip(quantiles, split.cuts, strict=True):
        assert (timeline < cut).sum() <= quantile * len(timeline) < (timeline <= cut).sum()


def worked_example() -> Interactions:
    return timed(
        [
            [(0, 0), (1, 1), (2, 2), (3, 8), (4, 8)],  # two items tied in the test
            [(5, 1), (6, 2), (7, 5)],  # validation only
            [(8, 2), (9, 3), (10, 6), (11, 9)],  # both stages
            [(12, 7), (13, 8)],  # too few before either cut
        ]
    )


def test_a_worked_example() -> None:
    split = temporal_split(worked_example(), (0.5, 0.7), min_history=2)
    assert split.cuts == (5.0, 7.0)
    assert [row.tolist() for row in split.train] == [[0, 1, 2], [5, 6], [8, 9]]
    assert split.train_users.tolist() == [0, 1, 2]
    assert (split.validation_users.tolist(), split.validation_target.tolist()) == ([1, 2], [7, 10])
    assert [row.tolist() for row in split.history("validation")] == [[5, 6], [8, 9]]
    assert (split.test_users.tolist(), split.test_target.tolist()) == ([0, 2], [3, 11])
    assert [row.tolist() for row in split.history("test")] == [[0, 1, 2], [8, 9, 10]]
    assert (split.validation.users, split.validation.no_target, split.validation.short_history) == (2, 2, 0)
    assert (split.test.users, split.test.no_target, split.test.short_history) == (2, 1, 1)
    assert (split.validation.tied_targets, split.test.tied_targets) == (0, 1)


def test_several_targets_are_predicted_one_after_the_other() -> None:
    split = temporal_split(worked_example(), (0.5, 0.7), min_history=2, targets=2)
    assert (split.test_users.tolist(), split.test_target.tolist()) == ([0, 0, 2], [3, 4, 11])
    assert [row.tolist() for row in split.history("test")] == [[0, 1, 2], [0, 1, 2, 3], [8, 9, 10]]
    assert split.test.tied_targets == 2


def test_ties_keep_the_order_of_the_lines(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "a.item").write_text(
        "item_id:token\ttitle:token_seq\tgenres:token_seq\n" + "".join(f"{item}\tT{item}\tG\n" for item in "abcdef")
    )
    lines = [("u", "a", 1), ("u", "b", 2), ("v", "b", 3), ("w", "a", 4), ("w", "b", 5), ("u", "f", 9), ("u", "c", 9)]
    for order, target in ((lines, "f"), ([*lines[:5], lines[6], lines[5]], "c")):
        (tmp_path / "a.inter").write_text(
            "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(f"{u}\t{i}\t{t}\n" for u, i, t in order)
        )
        catalogue, interactions = load_dataset(tmp_path, min_interactions=1)
        assert [times.tolist() for times in interactions.times] == [[1, 2, 9, 9], [3], [4, 5]]
        assert interactions.source == "a.inter"
        with pytest.raises(DataError, match=r"a\.inter: no user has an item in validation"):
            temporal_split(interactions, (0.5, 0.8))
        # w's second item validates
        split = temporal_split(interactions, (0.6, 0.75), min_history=1)
        assert split.history("validation")[0].tolist() == [0]
        assert [catalogue.item_ids[item] for item in split.test_target.tolist()] == [target]
        assert split.test.tied_targets == 1


def test_a_temporal_split_stands_in_for_a_split() -> None:
    split = temporal_split(worked_example(), (0.5, 0.7))
    with pytest.raises(DataError, match="stage: found 'train'"):
        split.history("train")  # type: ignore[arg-type]
    assert seen_mask(split.history("test"), 14).sum(1).tolist() == [3, 3]


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_positions_are_refused(start: float) -> None:
    rows = [[(item, start + item) for item in range(length)] for length in (4, 5, 6)]
    interactions = timed(rows)
    named = Interactions(interactions.user_ids, interactions.sequences, times=interactions.times, source="beauty.inter")
    with pytest.raises(DataError, match=rf"beauty\.inter: 3 of 3 users start at the timestamp {start:g}\. .*positions"):
        temporal_split(named)
    with pytest.raises(DataError, match=r"1 of 1 users start at .*positions"):
        temporal_split(timed(rows[:1]))


def test_one_user_with_real_times_is_fine() -> None:
    split = temporal_split(timed([[(0, 10.0), (1, 25.0), (2, 26.0), (3, 40.0)]]), (0.5, 0.75))
    assert (split.validation_target.tolist(), split.test_target.tolist()) == ([2], [3])


def test_users_dropped_for_their_future_are_refused() -> None:
    known = worked_example()
    dropped = Interactions(known.user_ids, known.sequences, dropped_users=7, times=known.times)
    with pytest.raises(DataError, match=r"7 users were left out.*min_interactions=1"):
        temporal_split(dropped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantiles": (0.9, 0.8)}, r"quantiles: found \(0.9, 0.8\)"),
        ({"quantiles": (0.0, 0.8)}, "quantiles: found"),
        ({"quantiles": (0.5, float("nan"))}, "quantiles: found"),
        ({"quantiles": (0.5, 0.55)}, "part between equal times is empty"),
        ({"quantiles": (0.01, 0.55)}, "starts at 0 and is cut at 0"),
        ({"quantiles": (0.1, 0.55)}, "no user has two items before 1.0"),
        ({"quantiles": (0.5, 0.7), "min_history": 9}, "no user has an item in validation and 9 or more before it"),
        ({"min_history": 0}, "min_history: found 0"),
        ({"targets": 0}, "targets: found 0"),
    ],
)
def test_impossible_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        temporal_split(worked_example(), **arguments)  # type: ignore[arg-type]


def test_times_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="no users"):
        temporal_split(make([]))
    with pytest.raises(DataError, match="times of the interactions are not known"):
        temporal_split(make([[1, 2, 3]]))
    falling = torch.tensor([3.0, 2.0], dtype=torch.float64)
    with pytest.raises(DataError, match="times of user_id 'u0' decrease"):
        temporal_split(Interactions(("u0",), tensors([1, 2]), times=(falling,)))
    with pytest.raises(DataError, match="user_id 'u0' has no items"):
        temporal_split(Interactions(("u0",), tensors([]), times=(falling[:0],)))
    with pytest.raises(DataError, match="times: expected one timestamp for each item"):
        Interactions(("u0",), tensors([1]), times=(falling,))
