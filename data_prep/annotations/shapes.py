"""Check points and polygons in px, as most formats have them, cut them to a tile and fill them.

Shapes have the coordinates of the files, from the image's corner: the first pixel reaches from 0 to
1, its middle is 0.5. Annotations that leave this module are in px at pixel centres
(images/arrays.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_prep.annotations.reader import Annotation, AnnotationReader
from data_prep.images.arrays import Box, Mask, PointsN2
from data_prep.images.tiles import Tile, inside_only, pixels_of, points_in
from data_prep.raw import BadInputError

FARTHEST_PX = 2**40  # so that areas are finite
Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2): x and y in px from the image's corner."""


@dataclass(frozen=True)
class Shape:
    """A point or a polygon of a class."""

    where: str
    """Where it is in the file, for messages."""
    name: str
    """Its class."""
    rings: tuple[Ring, ...]
    """The outline, then the outlines of holes. A point has one ring of one corner."""

    @property
    def is_point(self) -> bool:
        """Whether it is a point: painted as a disc, not filled."""
        return len(self.rings[0]) == 1


def point(where: str, name: str, x: float, y: float) -> Shape:
    """Make a point. Raises BadInputError for coordinates that no image has."""
    return Shape(where, name, (as_ring(where, [(x, y)]),))


def polygon(where: str, name: str, rings: Sequence[Sequence[tuple[float, float]]]) -> Shape:
    """Make a polygon with holes, closed or not. Raises BadInputError if it encloses nothing."""
    outlines = tuple(as_ring(where, ring) for ring in rings)
    if not outlines or any(signed_area(ring) == 0 for ring in outlines):
        raise BadInputError(f"{where}: encloses no area")
    return Shape(where, name, outlines)


def as_ring(where: str, corners: Sequence[tuple[float, float]]) -> Ring:
    """Make an array of corners. Raises BadInputError for NaN, infinity, a text."""
    try:
        ring = np.array(corners, np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        raise BadInputError(f"{where}: expected points [x, y], found {corners!r:.40}") from None
    if not (np.abs(ring) < FARTHEST_PX).all():
        raise BadInputError(f"{where}: a coordinate is not a position in any image")
    return ring


def signed_area(ring: Ring) -> float:
    """Return the area that a ring encloses, in px; negative if it runs counterclockwise."""
    x, y = (ring - ring[:1]).T  # relative to a corner, since large coordinates would cancel
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def middle(shape: Shape) -> npt.NDArray[np.float64]:
    """Return (2,): the centre of gravity without the holes, in px from the image's corner.

    If an outline crosses itself, its centre may be far away; then return the middle of its bounds.
    """
    if shape.is_point:
        return shape.rings[0][0]
    low, high = shape.rings[0].min(axis=0), shape.rings[0].max(axis=0)
    centre = centre_of_gravity(shape)
    is_within = ((low <= centre) & (centre <= high)).all()
    return centre if is_within else (low + high) / 2


def centre_of_gravity(shape: Shape) -> npt.NDArray[np.float64]:
    """Return (2,): the centre of a polygon's signed areas, in px from the image's corner."""
    areas, middles = [], []
    for number, ring in enumerate(shape.rings):
        near, following = ring - ring[0], np.roll(ring - ring[0], -1, axis=0)
        cross = near[:, 0] * following[:, 1] - following[:, 0] * near[:, 1]
        middles.append(ring[0] + ((near + following) * cross[:, None]).sum(0) / (3 * cross.sum()))
        areas.append(abs(cross.sum()) * (1 if number == 0 else -1))
    if sum(areas) <= 0:  # holes larger than the outline: ignore them
        return middles[0]
    return np.average(middles, axis=0, weights=areas)


class Shapes:
    """The shapes of a file, with arrays to find the shapes of a tile fast."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = shapes

    @cached_property
    def bounds(self) -> npt.NDArray[np.float64]:
        """(N, 4): left, top, right and bottom of each shape."""
        outlines = [shape.rings[0] for shape in self.shapes]
        bounds = [(*ring.min(axis=0), *ring.max(axis=0)) for ring in outlines]
        return np.array(bounds, np.float64).reshape(-1, 4)

    @cached_property
    def middles(self) -> npt.NDArray[np.float64]:
        """(N, 2): the middle of each shape, in px from the image's corner."""
        return np.array([middle(shape) for shape in self.shapes], np.float64).reshape(-1, 2)

    @cached_property
    def are_points(self) -> npt.NDArray[np.bool_]:
        """(N,): which shapes are points."""
        return np.array([shape.is_point for shape in self.shapes], bool)

    def check_inside(self, height_px: int, width_px: int) -> None:
        """Raise BadInputError for the first shape that reaches out of an image of this size."""
        sides = np.array([width_px, height_px, width_px, height_px])
        is_out = (self.bounds < 0) | (self.bounds > sides)
        for number in np.flatnonzero(is_out.any(axis=1))[:1].tolist():
            side = int(np.argmax(is_out[number]))
            raise BadInputError(
                f"{self.shapes[number].where}: {'xy'[side % 2]} ="
                f" {self.bounds[number, side]:g} is outside the image (0 to {sides[side]} px)"
            )

    def nuclei_near(self, tile: Tile) -> tuple[npt.NDArray[np.intp], PointsN2]:
        """Return the numbers of the shapes whose middle lies in or near the tile, and the image's
        pixels that these middles lie in."""
        pixels_N2 = pixels_of(self.middles, tile)
        near = np.flatnonzero(tile.reaches(pixels_N2))
        return near, pixels_N2[near]

    def areas_in(self, box: Box) -> list[Shape]:
        """Return the polygons whose bounds overlap a box of the image."""
        left, top, right, bottom = self.bounds.T
        meets = (left < box.x + box.width) & (right > box.x)
        meets &= (top < box.y + box.height) & (bottom > box.y)
        return [self.shapes[number] for number in np.flatnonzero(meets & ~self.are_points).tolist()]


class ShapeReader(AnnotationReader[Shapes]):
    """Base of readers whose files hold points and polygons in px; they only have to parse."""

    def classes_in(self, parsed: Shapes, classes: Sequence[str]) -> set[str]:
        """Return the classes of all shapes."""
        return {shape.name for shape in parsed.shapes}

    def annotation_in(self, parsed: Shapes, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Turn points into the pixels that they lie in, and fill polygons."""
        parsed.check_inside(tile.height_px, tile.width_px)
        names = [*values, *sorted(self.classes_in(parsed, [*values]) - values.keys())]
        near, pixels_N2 = parsed.nuclei_near(tile)
        name_of = np.array([parsed.shapes[number].name for number in near.tolist()], object)
        are_points = parsed.are_points[near]
        points = {name: pixels_N2[(name_of == name) & are_points] for name in names}
        middles = {name: pixels_N2[(name_of == name) & ~are_points] for name in names}
        areas = [shape for shape in parsed.areas_in(tile.box) if shape.name in values]
        return Annotation(
            points_in(points, tile),
            paint_areas(areas, tile.box, values) if areas else None,
            inside_only(points_in(middles, tile), tile.box.height, tile.box.width),
        )


def paint_areas(areas: Sequence[Shape], box: Box, values: Mapping[str, int]) -> Mask:
    """Fill polygons with the values of their classes, later over earlier ones; return HW uint8."""
    mask_HW = np.zeros((box.height, box.width), np.uint8)
    for name, value in values.items():
        for shape in areas:
            if shape.name == name:
                fill(mask_HW, [ring - (box.x, box.y) for ring in shape.rings], value)
    return mask_HW


def fill(mask_HW: Mask, rings: Sequence[Ring], value: int) -> None:
    """Write a value to the pixels whose middle is within the rings, by the even-odd rule.

    cv2.fillPoly would paint the outline too: half a pixel more all around.
    """
    corners = np.concatenate(rings)
    size = np.array(mask_HW.shape[::-1])
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, size).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, size).astype(int)
    window_HW = mask_HW[top:bottom, left:right]
    starts = corners - (left, top)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) - (left, top)
    # an edge crosses the middle line y + 0.5 of these rows
    low, high = np.sort([starts[:, 1], ends[:, 1]], axis=0)
    first, last = (
        np.clip(np.ceil(level - 0.5), 0, len(window_HW)).astype(int) for level in (low, high)
    )
    counts = last - first
    edge = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(counts.sum()) + (first + counts - np.cumsum(counts))[edge]
    (x, y), (dx, dy) = starts[edge].T, (ends - starts)[edge].T
    crossing = x + (row + 0.5 - y) * dx / dy
    column = np.clip(np.ceil(crossing - 0.5), 0, window_HW.shape[1]).astype(int)
    turns = np.zeros((len(window_HW), window_HW.shape[1] + 1), np.uint8)
    np.bitwise_xor.at(turns, (row, column), 1)  # enter or leave the area
    is_in_HW = np.bitwise_xor.accumulate(turns[:, :-1], axis=1).astype(bool)
    window_HW[is_in_HW] = value
