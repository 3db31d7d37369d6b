"""Line charts as numbers for an SVG: where lines, ticks and marks lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44

Point = tuple[float, float]
Mark = tuple[str, str, float]
"""A vertical line: kind, meaning, x."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in the units of the axes, joined by a line."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes; widths and heights in px of the drawing."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_range: Point
    y_range: Point
    marks: Sequence[Mark] = ()
    dots: Sequence[tuple[str, Point]] = field(default_factory=tuple)
    """Points that stand out, and their meaning."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies."""
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def path(self, line: Line) -> str:
        """The `d` of an SVG path; '' where there are no points."""
        places = "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in line.points)
        return places and f"M{places}"

    def x_ticks(self) -> list[float]:
        """Round values along the horizontal axis."""
        return round_values(self.x_range, 6)

    def y_ticks(self) -> list[float]:
        """Round values along the vertical axis."""
        return round_values(self.y_range, 5)


def round_values(limits: Point, at_most: int) -> list[float]:
    """Round values between two limits."""
    values = MaxNLocator(at_most, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits)
    return [float(value) for value in values if limits[0] <= value <= limits[1] * (1 + 1e-9)]
