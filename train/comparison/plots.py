"""Plots of a page, as shapes in px that the template draws: curves, dots and axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

WIDTH_PX, HEIGHT_PX = 520, 270
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 56, 12, 12, 44
MOST_POINTS = 200  # of a curve; with more, each is the mean of several
MOST_TICKS = 6
WIDE_RANGE = 20.0
"""Ratio of the largest to the smallest value from which losses are shown by their logarithm."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """Points of one run."""

    points: Points
    style: str
    """The class that gives the colour."""
    title: str
    """What a reader is told who points at it."""


@dataclass(frozen=True)
class Shape:
    """A series in px."""

    points: list[tuple[float, float]]
    style: str
    title: str

    @property
    def path(self) -> str:
        """The points as SVG has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Plot:
    """A plot in px of a picture of WIDTH_PX x HEIGHT_PX."""

    title: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    shapes: list[Shape]
    is_dots: bool
    width_px: int = WIDTH_PX
    height_px: int = HEIGHT_PX
    left_px: int = LEFT_PX
    right_px: int = WIDTH_PX - RIGHT_PX
    bottom_px: int = HEIGHT_PX - BOTTOM_PX
    top_px: int = TOP_PX


@dataclass(frozen=True)
class Axis:
    """How values become px."""

    low: float
    high: float
    first_px: float
    last_px: float
    is_log: bool = False

    def px(self, value: float) -> float:
        """Return where a value is."""
        low, high, at = (
            map(math.log, (self.low, self.high, value))
            if self.is_log
            else (self.low, self.high, value)
        )
        return self.first_px + (at - low) / (high - low) * (self.last_px - self.first_px)

    def ticks(self) -> list[tuple[float, str]]:
        """Return px and text of some round values."""
        values = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)
        return [(self.px(value), f"{value:g}") for value in values]


def axis(values: Sequence[float], first_px: float, last_px: float, is_log: bool = False) -> Axis:
    """Return an axis that holds all values."""
    low, high = min(values), max(values)
    is_log = is_log and low > 0
    if is_log:
        room = (high / low) ** 0.04 if high > low else 1.5
        return Axis(low / room, high * room, first_px, last_px, True)
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - room, high + room, first_px, last_px)


def ticks(low: float, high: float) -> list[float]:
    """Return round values between two, MOST_TICKS at most."""
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    step = next(
        factor * power
        for factor in (1, 2, 5, 10, 20)
        if (high - low) / (factor * power) <= MOST_TICKS
    )
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two values, or with fewer than two of them round values."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    every = -(-(last - first + 1) // MOST_TICKS) if last >= first else 1
    powers = [10.0**power for power in range(first, last + 1, every)]
    if len(powers) > 1:
        return powers
    between = [
        factor * 10.0**power for power in range(first - 1, last + 2) for factor in (1, 2, 3, 5)
    ]
    return [value for value in between if low <= value <= high] or ticks(low, high)


def curves(title: str, x_label: str, series: Sequence[Series], may_be_log: bool = False) -> Plot:
    """Plot curves; those listed first are drawn on top."""
    thinned = [Series(thin(each.points), each.style, each.title) for each in series if each.points]
    return plot(title, x_label, thinned, is_dots=False, may_be_log=may_be_log)


def plot(
    title: str,
    x_label: str,
    series: Sequence[Series],
    *,
    is_dots: bool,
    is_log_x: bool = False,
    may_be_log: bool = False,
    across: Axis | None = None,
) -> Plot:
    """Plot series, in px; `across` is the axis of x, if it is not to follow from the values."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    is_log_y = may_be_log and min(ys) > 0 and max(ys) / min(ys) > WIDE_RANGE
    across = across or axis(xs, LEFT_PX, WIDTH_PX - RIGHT_PX, is_log_x)
    upward = axis(ys, HEIGHT_PX - BOTTOM_PX, TOP_PX, is_log_y)
    shapes = [
        Shape([(across.px(x), upward.px(y)) for x, y in each.points], each.style, each.title)
        for each in reversed(series)
    ]
    return Plot(title, x_label, across.ticks(), upward.ticks(), shapes, is_dots)


def scatter(setting: str, values: Sequence[Any], series: Sequence[Series], is_log: bool) -> Plot:
    """Plot a setting's values against Dice. `series`: a point of each, whose x is not used yet.

    Words have a place each, in the order of their names.
    """
    words = [] if all(map(is_number, values)) else sorted({*map(str, values)})
    xs = [float(words.index(str(value)) if words else value) for value in values]
    placed = [
        Series([(x, each.points[0][1])], each.style, each.title)
        for x, each in zip(xs, series, strict=True)
    ]
    if not words:
        return plot(f"Validation Dice by {setting}", setting, placed, is_dots=True, is_log_x=is_log)
    across = Axis(-0.5, len(words) - 0.5, LEFT_PX, WIDTH_PX - RIGHT_PX)
    found = plot(f"Validation Dice by {setting}", setting, placed, is_dots=True, across=across)
    return replace(found, x_ticks=[(across.px(n), word) for n, word in enumerate(words)])


def is_number(value: Any) -> bool:
    """Return whether a setting's value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def thin(points: Points) -> Points:
    """Return MOST_POINTS points at most, each the mean of as many."""
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts
    ]
