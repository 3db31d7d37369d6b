"""Check points and polygons in px, as most formats have them, cut them to a tile and fill them.

Shapes have the coordinates of the files, from the image's corner: the first pixel reaches from 0 to
1, its middle is 0.5. Annotations that leave this module are in px at pixel centres
(images/arrays.py).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.annotations.findings import Findings, UnusableError
from data_prep.annotations.outlines import (
    Ring,
    canonical,
    clip,
    fill,
    holds_any,
    is_flat,
    measure,
    outside_of,
    without_holes,
)
from data_prep.annotations.reader import Annotation, AnnotationReader, Rules
from data_prep.config import IGNORE_LABEL, is_class_name, is_ignored
from data_prep.images.arrays import Box, Mask, PointsN2
from data_prep.images.tiles import Tile, inside_only, pixels_of, points_in
from data_prep.raw import BadInputError

FARTHEST_PX = 2**40  # so that areas are finite
EDGE_PX = 0.5  # a point that is less far out was clicked on the edge


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

    @property
    def content(self) -> tuple[object, ...]:
        """The class and the geometry, wherever the rings begin, closed or not, and whichever way
        round."""
        return self.name, *(canonical(ring).tobytes() for ring in self.rings)

    def within(self, height_px: int, width_px: int) -> "Shape | None":
        """Return the part inside an image of this size; None if there is none."""
        size = np.array([width_px, height_px], np.float64)
        if self.is_point:
            inside = np.clip(self.rings[0], 0, size)
            is_near = (np.abs(inside - self.rings[0]) < EDGE_PX).all()
            return replace(self, rings=(inside,)) if is_near else None
        rings = [clip(ring, size) for ring in self.rings]
        if is_flat(rings[0]):
            return None
        holes = [hole for hole in rings[1:] if not is_flat(hole)]
        return replace(self, rings=(rings[0], *holes))


def point(where: str, name: str, x: float, y: float) -> Shape:
    """Make a point. Raises UnusableError for coordinates that no image has."""
    return Shape(where, class_name(where, name), (as_ring(where, [(x, y)]),))


def polygon(where: str, name: str, rings: Sequence[Ring | Sequence[tuple[float, float]]]) -> Shape:
    """Make a polygon with holes, closed or not; leave out holes without area.

    Raises UnusableError if it encloses nothing.
    """
    outlines = [as_ring(where, ring) for ring in rings]
    if not outlines or is_flat(outlines[0]):
        raise UnusableError(where, "encloses no area")
    holes = [ring for ring in outlines[1:] if not is_flat(ring)]
    return Shape(where, class_name(where, name), (outlines[0], *holes))


def class_name(where: str, name: str) -> str:
    """Check the name of a class. Raises UnusableError."""
    if not is_class_name(name):
        detail = f"class {name!a:.60}: a name holds unprintable characters"
        raise UnusableError(where, "class with unprintable characters", detail)
    return name


def as_ring(where: str, corners: Ring | Sequence[tuple[float, float]]) -> Ring:
    """Make an array of corners. Raises UnusableError for NaN, infinity, a text."""
    try:
        ring = np.array(corners, np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        detail = f"expected points [x, y], found {corners!r:.40}"
        raise UnusableError(where, "coordinates that are not points [x, y]", detail) from None
    if not (np.abs(ring) < FARTHEST_PX).all():
        raise UnusableError(where, "a coordinate is not a position in any image")
    return ring


def bounds_and_middles(shapes: Sequence[Shape]) -> tuple[npt.NDArray[np.float64], PointsN2]:
    """Return (N, 4), left, top, right and bottom, and (N, 2), the centres of gravity of the areas
    without their holes, in px from the image's corner.

    If an outline crosses itself, its centre may be far away; then return the middle of its bounds.
    """
    outlines = measure([shape.rings[0] for shape in shapes])
    centres = outlines.centres
    for number, shape in enumerate(shapes):
        if len(shape.rings) > 1:
            rings = measure(shape.rings)
            centres[number] = without_holes(rings.areas, rings.centres)
    low, high = outlines.low, outlines.high
    is_within = ((low <= centres) & (centres <= high)).all(axis=1, keepdims=True)
    return np.hstack([low, high]), np.where(is_within, centres, (low + high) / 2)


class Shapes:
    """The shapes of a file, with arrays to find the shapes of a tile fast."""

    def __init__(
        self, shapes: Sequence[Shape], passed_over: Mapping[str, int] | None = None
    ) -> None:
        """`passed_over`: reason -> number of objects that the file has too. A shape that occurs
        again is left out."""
        first: dict[tuple[object, ...], Shape] = {}
        for shape in shapes:
            first.setdefault(shape.content, shape)
        self.shapes = [*first.values()]
        self.passed_over = passed_over or {}
        self.num_duplicates = len(shapes) - len(self.shapes)
        self.num_clipped = 0
        self.cut: dict[tuple[int, int], Shapes] = {}

    @cached_property
    def bounds(self) -> npt.NDArray[np.float64]:
        """(N, 4): left, top, right and bottom of each shape."""
        bounds, self.middles = bounds_and_middles(self.shapes)
        return bounds

    @cached_property
    def middles(self) -> PointsN2:
        """(N, 2): the middle of each shape, in px from the image's corner."""
        self.bounds, middles = bounds_and_middles(self.shapes)
        return middles

    @cached_property
    def are_points(self) -> npt.NDArray[np.bool_]:
        """(N,): which shapes are points."""
        return np.array([shape.is_point for shape in self.shapes], bool)

    @cached_property
    def holding(self) -> tuple[dict[str, int], int]:
        """Class -> number of its areas that hold the middle of another shape of the class; and the
        number of areas that were not tested."""
        found, num_untested = Counter[str](), 0
        names = np.array([shape.name for shape in self.shapes], object)
        for name in {shape.name for shape in self.shapes if not shape.is_point}:
            numbers = np.flatnonzero(names == name)
            areas = [
                (index, self.shapes[number].rings)
                for index, number in enumerate(numbers.tolist())
                if not self.are_points[number]
            ]
            found[name], untested = holds_any(areas, self.bounds[numbers], self.middles[numbers])
            num_untested += untested
        return {name: number for name, number in sorted(found.items()) if number}, num_untested

    def within(self, height_px: int, width_px: int) -> "Shapes":
        """Return the shapes with outlines cut at the border of an image of this size.

        Raises BadInputError if a shape lies wholly outside: the file is most likely another
        image's.
        """
        size = height_px, width_px
        if size not in self.cut:
            self.cut[size] = self.cut_to(height_px, width_px)
        return self.cut[size]

    def cut_to(self, height_px: int, width_px: int) -> "Shapes":
        """Do what `within` says, once for each size."""
        sides = np.array([width_px, height_px])
        low, high = self.bounds[:, :2], self.bounds[:, 2:]
        is_out = ((high <= 0) | (low >= sides)).any(axis=1) & ~self.are_points
        reaching = np.flatnonzero(((low < 0) | (high > sides)).any(axis=1) & ~is_out).tolist()
        parts = {number: self.shapes[number].within(height_px, width_px) for number in reaching}
        outside = sorted({*np.flatnonzero(is_out).tolist()} | {n for n in parts if not parts[n]})
        if outside:
            shape, of_all = self.shapes[outside[0]], f"{len(outside)} of {len(self.shapes)} objects"
            where = outside_of(self.bounds[outside[0]], width_px, height_px)
            raise BadInputError(
                f"{shape.where}: {where} (as {'is' if len(outside) == 1 else 'are'} {of_all}); do"
                " the annotations belong to another image?"
            )
        cut = copy(self)
        cut.shapes = [parts.get(number) or shape for number, shape in enumerate(self.shapes)]
        cut.bounds, cut.middles = self.bounds.copy(), self.middles.copy()
        own = bounds_and_middles([cut.shapes[number] for number in reaching])
        cut.bounds[reaching], cut.middles[reaching] = own
        cut.num_clipped = int((~self.are_points[reaching]).sum())
        return cut

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


class Collector:
    """Collects the shapes of a file, and counts what cannot be used."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self.passed_over: Counter[str] = Counter()
        self.first = ""
        """What is wrong with the first object that cannot be used."""

    @contextmanager
    def passing_over(self) -> Iterator[None]:
        """Count an object if making its shapes raises UnusableError."""
        try:
            yield
        except UnusableError as error:
            self.passed_over[error.reason] += 1
            self.first = self.first or str(error)

    def collected(self, rules: Rules, what: str) -> Shapes:
        """Return what was collected. Raises BadInputError where nothing was, though there were
        objects, or else where the rules refuse that; `what` says how the file is empty."""
        if not self.shapes and self.first:
            raise BadInputError(f"{self.first} (and no other object can be used)")
        if not self.shapes:
            rules.check_empty(what)
        return Shapes(self.shapes, self.passed_over)


@lru_cache(maxsize=1)
def scaled(shapes: Shapes, scale: tuple[float, float]) -> Shapes:
    """Return shapes in px of a rescaled image; cached, since all tiles of an image ask for them."""
    if scale == (1, 1):
        return shapes
    return Shapes(
        [replace(each, rings=tuple(ring * scale for ring in each.rings)) for each in shapes.shapes]
    )


class ShapeReader(AnnotationReader[Shapes]):
    """Base of readers whose files hold points and polygons in px; they only have to parse."""

    def classes_in(self, parsed: Shapes, classes: Sequence[str]) -> set[str]:
        """Return the classes of all shapes."""
        return {shape.name for shape in parsed.shapes}

    def annotation_in(self, parsed: Shapes, tile: Tile, values: Mapping[str, int]) -> Annotation:
        """Turn points into the pixels that they lie in, and fill polygons."""
        parsed = scaled(parsed.within(*tile.file_px), tile.scale)
        others = sorted(self.classes_in(parsed, [*values]) - values.keys())
        names, ignored = [*values, *others], [*filter(is_ignored, others)]
        painted = {**values, **dict.fromkeys(ignored, IGNORE_LABEL)}
        near, pixels_N2 = parsed.nuclei_near(tile)
        name_of = np.array([parsed.shapes[number].name for number in near.tolist()], object)
        are_points = parsed.are_points[near]
        points = {name: pixels_N2[(name_of == name) & are_points] for name in names}
        middles = {name: pixels_N2[(name_of == name) & ~are_points] for name in names}
        middles |= dict.fromkeys(ignored, np.zeros((0, 2)))  # no nuclei
        areas = [shape for shape in parsed.areas_in(tile.box) if shape.name in painted]
        return Annotation(
            points_in(points, tile),
            paint_areas(areas, tile.box, painted) if areas else None,
            inside_only(points_in(middles, tile), tile.box.height, tile.box.width),
        )

    def findings(self, parsed: Shapes, tile: Tile) -> Findings:
        """Count the shapes of the whole image, and what was wrong with others."""
        holding, num_untested = parsed.holding
        return Findings(
            classes=dict(Counter(shape.name for shape in parsed.shapes)),
            passed_over=dict(parsed.passed_over),
            clipped=parsed.within(*tile.file_px).num_clipped,
            duplicates=parsed.num_duplicates,
            holding=holding,
            untested=num_untested,
        )


def paint_areas(areas: Sequence[Shape], box: Box, values: Mapping[str, int]) -> Mask:
    """Fill polygons with the values of their classes, later over earlier ones; return HW uint8."""
    mask_HW = np.zeros((box.height, box.width), np.uint8)
    for name, value in values.items():
        of_class = [shape.rings for shape in areas if shape.name == name]
        fill(mask_HW, [[ring - (box.x, box.y) for ring in rings] for rings in of_class], value)
    return mask_HW
