"""Finds room for the names of points in a plot: they cover nothing, and the lines to their points do not cross."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top
Spot = tuple[float, float]
_Line = tuple[Spot, Spot]
_RADIUS = 5  # of a point, in pixels
_FAR, _DETOUR, _ROUNDS = 20, 200, 4


def place_all(
    marks: Sequence[Box], points: Mapping[str, Spot], sizes: Mapping[str, tuple[float, float]], frame: Box
) -> dict[str, tuple[Box, Spot | None]]:
    """Room for all names: from the top down, and then each a few times more, now that the others are there.

    Args:
        marks: Boxes that no name may cover.
        points: Name → its point.
        sizes: Name → width and height.
        frame: Names stay inside.

    Returns:
        Name → what :meth:`Labels.place` says.
    """
    labels = Labels(marks, list(points.values()), frame)
    order = sorted(points, key=lambda name: -points[name][1])
    found = {name: labels.place(points[name], sizes[name]) for name in order}
    for _ in range(_ROUNDS):
        before = dict(found)
        for name in order:
            labels.remove(*found[name], points[name])
            found[name] = labels.place(points[name], sizes[name])
        if found == before:
            break
    return found


class Labels:
    """Places names one by one, each free of those before it. All lengths are pixels.

    Args:
        marks: Boxes that no name may cover.
        points: What is named.
        frame: Names stay inside.
    """

    def __init__(self, marks: Sequence[Box], points: Sequence[Spot], frame: Box) -> None:
        self._marks, self._points, self._frame = marks, points, frame
        self._names: list[Box] = []
        self._lines: list[_Line] = []

    def place(self, point: Spot, size: tuple[float, float]) -> tuple[Box, Spot | None]:
        """Room for a point's name, and where on it a line to the point ends; None where it needs no line.

        The nearest free one, where a line to the point crosses as little as can be; beside the point if none is free.

        Args:
            point: One of the points.
            size: Width and height of the name.
        """
        x, y = point
        free = (box for box in _around(point, size) if self._is_free(box))
        box = min(free, key=lambda box: self._cost(box, point), default=(x + 9, y, x + 9 + size[0], y + size[1]))
        self._names.append(box)
        end = _nearest(box, point)
        distance = math.dist(end, point)
        near = (_distance(box, other) < 1.5 * distance for other in self._points if other != point)
        if distance <= _FAR and not any(near):
            return box, None
        self._lines.append((point, end))
        return box, end

    def remove(self, box: Box, end: Spot | None, point: Spot) -> None:
        """Take away what :meth:`place` gave a point."""
        self._names.remove(box)
        if end is not None:
            self._lines.remove((point, end))

    def _is_free(self, box: Box) -> bool:
        left, bottom, right, top = self._frame
        inside = box[0] > left and box[1] > bottom and box[2] < right and box[3] < top
        covers = any(_cover(box, other) for other in (*self._marks, *self._names))
        return inside and not covers and not any(_passes(line, box) for line in self._lines)

    def _cost(self, box: Box, point: Spot) -> float:
        """Pixels to the point, and as many as a detour may have for each thing that the line would cross."""
        end = _nearest(box, point)
        line = (point, end)
        crossed = sum(_cross(line, other) for other in self._lines) + sum(_passes(line, name) for name in self._names)
        for x, y in self._points:
            crossed += (x, y) != point and _passes(line, (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS))
        return math.dist(end, point) + _DETOUR * crossed


def _around(point: Spot, size: tuple[float, float]) -> Iterator[Box]:
    """Boxes of a size around a point, the nearest first."""
    (x, y), (width, height) = point, size
    for ring in range(1, 40):
        for turn in range(16):
            angle = math.pi / 4 + turn * math.pi / 8
            across, up = math.cos(angle), math.sin(angle)
            left = x + 9 * ring * across - width * (0 if across > 0.1 else 1 if across < -0.1 else 0.5)
            bottom = y + 9 * ring * up - height * (0 if up > 0.1 else 1 if up < -0.1 else 0.5)
            yield (left, bottom, left + width, bottom + height)


def _cover(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _nearest(box: Box, spot: Spot) -> Spot:
    """The point of a box that is nearest to another point."""
    return min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])


def _distance(box: Box, spot: Spot) -> float:
    return math.dist(_nearest(box, spot), spot)


def _cross(first: _Line, second: _Line) -> bool:
    """Whether two lines cross."""

    def side(line: _Line, spot: Spot) -> float:
        (x, y), (right, top) = line
        return (right - x) * (spot[1] - y) - (top - y) * (spot[0] - x)

    return side(first, second[0]) * side(first, second[1]) < 0 and side(second, first[0]) * side(second, first[1]) < 0


def _passes(line: _Line, box: Box) -> bool:
    """Whether a line goes through a box."""
    left, bottom, right, top = box
    if any(left <= x <= right and bottom <= y <= top for x, y in line):
        return True
    return _cross(line, ((left, bottom), (right, top))) or _cross(line, ((left, top), (right, bottom)))
