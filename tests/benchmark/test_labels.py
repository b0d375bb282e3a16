from __future__ import annotations

import itertools

import pytest
from benchmark.labels import Box, Labels, place_all
from hypothesis import given
from hypothesis import strategies as st

FRAME = (0.0, 0.0, 800.0, 600.0)
SIZE = (90.0, 14.0)


def marks_of(points: list[tuple[float, float]]) -> list[Box]:
    return [(x - 7, y - 7, x + 7, y + 7) for x, y in points]


def covers(first: Box, second: Box) -> bool:
    return min(first[2], second[2]) > max(first[0], second[0]) and min(first[3], second[3]) > max(first[1], second[1])


spots = st.tuples(st.floats(150, 650), st.floats(100, 500))


@given(st.lists(spots, min_size=1, max_size=8, unique=True))
def test_names_cover_no_point_and_no_name_and_stay_inside(points: list[tuple[float, float]]) -> None:
    labels, marks = Labels(marks_of(points), points, FRAME), marks_of(points)
    boxes = [labels.place(point, SIZE)[0] for point in points]
    for box in boxes:
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(SIZE)
        assert FRAME[0] < box[0] < box[2] < FRAME[2]
        assert FRAME[1] < box[1] < box[3] < FRAME[3]
        assert not any(covers(box, mark) for mark in marks)
    assert not any(covers(first, second) for first, second in itertools.combinations(boxes, 2))


def test_a_point_by_itself_has_its_name_beside_it_and_no_line() -> None:
    box, end = Labels(marks_of([(400, 300)]), [(400, 300)], FRAME).place((400, 300), SIZE)
    assert end is None
    assert max(box[0] - 400, 400 - box[2], box[1] - 300, 300 - box[3]) < 10


def test_lines_in_a_crowd_do_not_cross_each_other_and_end_at_their_names() -> None:
    points = [(400.0 + 9 * across, 300.0 + 2 * (across % 2)) for across in range(6)]
    labels = Labels(marks_of(points), points, FRAME)
    lines = []
    for point in points:
        box, end = labels.place(point, SIZE)
        if end is None:
            continue
        assert box[0] <= end[0] <= box[2]
        assert box[1] <= end[1] <= box[3]
        lines.append((point, end))
    assert len(lines) > 2  # six names do not fit beside six points that touch

    def side(line: tuple, spot: tuple[float, float]) -> float:
        (x, y), (right, top) = line
        return (right - x) * (spot[1] - y) - (top - y) * (spot[0] - x)

    for first, second in itertools.combinations(lines, 2):
        apart = side(first, second[0]) * side(first, second[1]) >= 0
        assert apart or side(second, first[0]) * side(second, first[1]) >= 0


def test_without_room_a_name_stands_beside_its_point() -> None:
    box, _ = Labels([(0, 0, 800, 600)], [(400, 300)], FRAME).place((400, 300), SIZE)
    assert box == (409, 300, 499, 314)


CROWD = {"a": (610.0, 565.0), "b": (624.0, 545.0), "c": (656.0, 541.0), "d": (668.0, 539.0), "e": (620.0, 537.0)}
CROWD |= {"f": (666.0, 533.0), "g": (564.0, 531.0), "h": (634.0, 527.0)}
WIDTHS = {"a": 30.0, "b": 30.0, "c": 30.0, "d": 180.0, "e": 80.0, "f": 180.0, "g": 80.0, "h": 180.0}


def test_a_name_makes_way_for_a_line_that_comes_later() -> None:
    bars = [(x - 60, y - 2, x + 60, y + 2) for x, y in CROWD.values()]
    marks, sizes = [*marks_of(list(CROWD.values())), *bars], {name: (width, 14.0) for name, width in WIDTHS.items()}

    def crossed(found: dict[str, tuple[Box, tuple[float, float] | None]]) -> int:
        lines = [(name, (CROWD[name], end)) for name, (_, end) in found.items() if end is not None]
        return sum(passes(line, box) for name, line in lines for other, (box, _) in found.items() if other != name)

    frame = (0.0, 0.0, 740.0, 600.0)
    one_by_one = Labels(marks, list(CROWD.values()), frame)
    assert crossed({name: one_by_one.place(CROWD[name], sizes[name]) for name in CROWD}) > 0
    assert crossed(place_all(marks, CROWD, sizes, frame)) == 0


def passes(line: tuple[tuple[float, float], tuple[float, float]], box: Box) -> bool:
    (x, y), (right, top) = line
    spots = [(x + part / 200 * (right - x), y + part / 200 * (top - y)) for part in range(201)]
    return any(box[0] < across < box[2] and box[1] < up < box[3] for across, up in spots)
