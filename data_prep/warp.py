"""A variant's geometry as one map from its pixels to those of its field.

Whatever the transform, the map is known on a coarse lattice and enlarged where it is needed, so
that an image is interpolated once; points are moved by the same map, turned round. Places are
pixel indices (x, y), (0, 0) being the centre of the first pixel.

    elastic     Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801: uniform noise, Gaussian-smoothed
    gaussian    the same with normal noise and a much wider Gaussian: whole regions shift
    barrel      r -> r (1 + k r^2 + k r^4), k > 0; pincushion the same with k < 0; r in field sides
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.remap import Floats, Map, Pixels, remap

Places = npt.NDArray[np.float64]
"""(N, 2): x and y in px."""
Border = Literal["mirror", "white", "black"]
Noise = Literal["uniform", "normal"]

MARGIN_PX = 64  # how far beyond the field the map is known, for discs that reach into it
LATTICE_ERROR_PX = 0.06  # of straight cells, where a random displacement bends, RMS
SPARE_PX = 3  # of a border: pixels are read in pairs, and a little further
MAX_SIDE_PX = 32_766  # of pictures: OpenCV's remap counts in 16 bit
SOLVED_PX = 0.01  # a point is found where the map leads this near to it along both axes
MAX_ITERATIONS = 12

CV2_BORDERS = {
    "mirror": (cv2.BORDER_REFLECT_101, 0),
    "white": (cv2.BORDER_CONSTANT, 255),
    "black": (cv2.BORDER_CONSTANT, 0),
}


@dataclass(frozen=True)
class Lattice:
    """Places `step_px` apart that cover a field of view and MARGIN_PX around it.

    Nodes lie at the centres of cells of step_px pixels, as cv2.resize has them.
    """

    height_px: int
    width_px: int
    step_px: int

    @property
    def margin(self) -> int:
        """Cells beyond each side of the field."""
        return math.ceil(MARGIN_PX / self.step_px) + 1

    @property
    def num_nodes(self) -> tuple[int, int]:
        """Nodes down and across."""
        down, across = (
            math.ceil(extent / self.step_px) + 2 * self.margin
            for extent in (self.height_px, self.width_px)
        )
        return down, across

    @property
    def origin_px(self) -> float:
        """The place of the first node, along both axes."""
        return (0.5 - self.margin) * self.step_px - 0.5

    def places(self) -> Floats:
        """HW2 float32: the place (x, y) of every node."""
        return np.stack(np.meshgrid(*self.along()), axis=-1).astype(np.float32)

    def along(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """x of the columns of nodes and y of the rows."""
        down, across = (
            self.origin_px + self.step_px * np.arange(n, dtype=np.float64) for n in self.num_nodes
        )
        return across, down


class Bordered:
    """A picture, HW or HWC uint8, with its border drawn as far as variants have needed it.

    Places outside a picture are taken one by one: within a drawn border it is several times as
    fast for a turned field.
    """

    def __init__(self, pixels: Pixels, border: Border) -> None:
        self.pixels = self.drawn = pixels
        self.drawn_px = 0
        self.mode, value = CV2_BORDERS[border]
        self.fill = (value,) * 4

    def drawn_to(self, reach_px: int) -> tuple[Pixels, int]:
        """The picture with a border that is wide enough, unless it is very wide, and its width."""
        height, width = self.pixels.shape[:2]
        largest_px = min(height, width, (MAX_SIDE_PX - max(height, width)) // 2)
        if reach_px > largest_px:
            return self.pixels, 0
        if reach_px > self.drawn_px:
            # at once what most need: a turned field reaches a third of its height outside
            self.drawn_px = sides = max(reach_px, largest_px // 3)
            self.drawn = cv2.copyMakeBorder(
                self.pixels, sides, sides, sides, sides, self.mode, value=self.fill
            )
        return self.drawn, self.drawn_px


class Warp:
    """The map of one variant: for each of its places, the place in the field that is seen there."""

    def __init__(self, lattice: Lattice, sources_HW2: Floats, border: Border = "mirror") -> None:
        self.lattice, self.sources_HW2, self.border = lattice, sources_HW2, border

    def move_pixels(self, picture: Bordered, interpolation: int) -> Pixels:
        """The field's picture, HW or HWC uint8 -> the variant's, interpolated once."""
        pixels, drawn_px = picture.drawn_to(self.reach_px())
        return remap(pixels, self.map(drawn_px), interpolation, picture.mode, picture.fill)

    def map(self, border_px: int) -> Map:
        """The sources of all of the variant's pixels in the field with a border of this width."""
        step, first = self.lattice.step_px, self.lattice.margin - 1
        height, width = self.lattice.height_px, self.lattice.width_px
        down, across = (first + math.ceil(extent / step) + 2 for extent in (height, width))
        nodes = self.sources_HW2[first:down, first:across] + np.float32(border_px)
        x, y = (
            cv2.resize(nodes[..., axis], None, fx=step, fy=1)[:, step : step + width]
            for axis in (0, 1)
        )
        # in half cells from the first of these nodes, which lies half a cell above the field
        above, halves = np.divmod(2 * np.arange(height) + 1 + step, 2 * step)
        share = halves.astype(np.float32) / np.float32(2 * step)
        return Map(np.ascontiguousarray(x), np.ascontiguousarray(y), above.astype(np.int32), share)

    def reach_px(self) -> int:
        """How wide a border the variant needs, in px."""
        inner = self.lattice.margin - 1
        low, high = extent(self.sources_HW2[inner:-inner, inner:-inner])
        size = (self.lattice.width_px, self.lattice.height_px)
        return math.ceil(max(0, *-low, *(high - size))) + SPARE_PX

    def move_points(self, points: Places) -> tuple[Places, npt.NDArray[np.intp]]:
        """Where the variant shows points of the field, to SOLVED_PX, and which point is where.

        In a mirrored border a point is shown again. Places outside the variant come too, up to
        MARGIN_PX. Of a map that folds over, one place comes for a point that is shown three times.
        """
        which = np.arange(len(points))
        if self.border == "mirror":
            points, which = self.with_mirrored(points)
        places, is_found = self.solve(points, points, math.inf)
        is_far = ~self.is_near(places)
        # found far away, where the map folds over, a point may be here as well
        is_lost = ~is_found | (is_far & self.folds()) if is_far.any() else ~is_found
        if is_lost.any():
            lost = np.flatnonzero(is_lost)
            found, places_found = self.search(points[lost])
            places[lost[found]], is_found[lost[found]] = places_found, True
        kept = is_found & self.is_near(places)
        return places[kept], which[kept]

    def is_near(self, places: Places) -> npt.NDArray[np.bool_]:
        """Which places lie in the variant or up to MARGIN_PX outside."""
        end = np.array([self.lattice.width_px, self.lattice.height_px]) + MARGIN_PX
        return np.all((places > -MARGIN_PX) & (places < end), axis=1)

    def with_mirrored(self, points: Places) -> tuple[Places, npt.NDArray[np.intp]]:
        """The points and their images in a mirrored border as far as the map reaches, and which
        point each is of. Points outside the field have none."""
        last = np.array([self.lattice.width_px, self.lattice.height_px]) - 1
        low, high = extent(self.sources_HW2)
        is_inside = np.all((points >= 0) & (points <= last), axis=1)
        rows = np.column_stack([points, np.arange(len(points))])
        outside, rows = rows[~is_inside], rows[is_inside]
        for axis in (0, 1):
            if last[axis] == 0:  # a line that is its own mirror image
                continue
            period = 2 * last[axis]
            turns = np.arange(math.floor(low[axis] / period), math.ceil(high[axis] / period) + 1)
            is_own_image = (rows[:, axis] == 0) | (rows[:, axis] == last[axis])
            turned = rows[~is_own_image] * np.where(np.arange(3) == axis, -1, 1)
            shifts = np.zeros((len(turns), 1, 3))
            shifts[:, 0, axis] = period * turns
            rows = (np.concatenate([rows, turned]) + shifts).reshape(-1, 3)
            rows = rows[(rows[:, axis] >= low[axis]) & (rows[:, axis] <= high[axis])]
        rows = np.concatenate([outside, rows])
        return rows[:, :2], rows[:, 2].astype(np.intp)

    def solve(
        self, points: Places, start: Places, longest_px: float
    ) -> tuple[Places, npt.NDArray[np.bool_]]:
        """Newton's method: the places that the map leads from to the points, and which it found.

        No step is longer than `longest_px` along an axis.
        """
        places, is_found = start.copy(), np.zeros(len(start), bool)
        missing_at = np.arange(len(start))
        for _ in range(MAX_ITERATIONS):
            sources, slope_N22 = self.at(places[missing_at])
            missing = points[missing_at] - sources
            found = np.all(np.abs(missing) < SOLVED_PX, axis=1)
            is_found[missing_at[found]] = True
            missing_at, missing, slope_N22 = missing_at[~found], missing[~found], slope_N22[~found]
            if not len(missing_at):
                break
            (xx, xy), (yx, yy) = slope_N22.transpose(1, 2, 0)
            determinant = xx * yy - xy * yx
            determinant[np.abs(determinant) < 1e-3] = 1.0  # flat: some step, to get away
            x, y = missing.T
            step = np.stack([yy * x - xy * y, xx * y - yx * x], axis=1) / determinant[:, None]
            places[missing_at] += np.clip(step, -longest_px, longest_px)
        return places, is_found

    def at(self, places: Places) -> tuple[Places, npt.NDArray[np.float64]]:
        """The sources (N, 2) of places, and their slope (N, 2, 2) along x and y."""
        step = self.lattice.step_px
        cell = (places - self.lattice.origin_px) / step
        down, across = self.lattice.num_nodes
        corner = np.clip(cell, 0, (across - 2, down - 2)).astype(np.intp)  # cut, so at or before
        right, below = (cell - corner).T[..., None]
        nodes, at = self.sources_HW2.reshape(-1, 2), corner[:, 1] * across + corner[:, 0]
        first, second, third, fourth = (
            nodes[at + further].astype(float) for further in (0, 1, across, across + 1)
        )
        to_right, down_left = second - first, third - first
        twist = fourth - third - to_right
        down_here = down_left + right * twist
        slope_N22 = np.stack([to_right + below * twist, down_here], axis=-1) / step
        return first + right * to_right + below * down_here, slope_N22

    def folds(self) -> bool:
        """Whether the map turns a part of the field over."""
        right, down = (np.diff(self.sources_HW2, axis=axis) for axis in (1, 0))
        (xx, xy), (yx, yy) = (np.moveaxis(part, -1, 0) for part in (right[:-1], down[:, :-1]))
        area = xx * yy - xy * yx
        return bool(area.min() <= 0 <= area.max())

    def search(self, points: Places) -> tuple[npt.NDArray[np.intp], Places]:
        """For points that are hidden in folds: which of them the map shows, and a place of each.

        From every cell of the lattice whose corners' sources lie about the point.
        """
        corners = np.ones((2, 2), np.uint8)  # of the cell to the right and below of a node
        low, high = (
            of_corners(self.sources_HW2, corners, anchor=(0, 0))[:-1, :-1]
            for of_corners in (cv2.erode, cv2.dilate)  # their least, their largest
        )
        (left, top), (right, bottom) = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
        cells = [
            np.argwhere((left <= x) & (x <= right) & (top <= y) & (y <= bottom))
            for x, y in points.astype(np.float32)
        ]
        point_of = np.repeat(np.arange(len(points)), [len(found) for found in cells])
        step = self.lattice.step_px
        middle = np.concatenate([np.zeros((0, 2)), *cells])[:, ::-1] + 0.5
        start = self.lattice.origin_px + step * middle
        places, is_found = self.solve(points[point_of], start, step / 2)
        found, first = np.unique(point_of[is_found], return_index=True)
        return found, places[is_found][first]


def extent(places_HW2: Floats) -> tuple[Floats, Floats]:
    """(x, y), the least and the largest."""
    planes = [places_HW2[..., axis] for axis in (0, 1)]
    return (
        np.array([plane.min() for plane in planes]),
        np.array([plane.max() for plane in planes]),
    )


def flip(lattice: Lattice, axis: int) -> Floats:
    """Left and right (axis 0) or top and bottom (axis 1) exchanged."""
    sources = lattice.places()
    sources[..., axis] = (lattice.width_px, lattice.height_px)[axis] - 1 - sources[..., axis]
    return sources


def turn_and_scale(lattice: Lattice, angle_deg: float, factor: float) -> Floats:
    """Turned against the clock and enlarged about the centre."""
    angle = math.radians(angle_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([lattice.width_px - 1, lattice.height_px - 1]) / 2
    offset = lattice.places() - centre
    return (centre + offset @ turn.T / factor).astype(np.float32)


def lens(lattice: Lattice, k: float) -> Floats:
    """What is seen at r was at r (1 + k r^2 + k r^4); x in field widths, y in field heights.

    From r = 1 on as there: of a small field the margin would lie thousands of px away.
    """
    x, y = lattice.along()
    middle_x, middle_y = (lattice.width_px - 1) / 2, (lattice.height_px - 1) / 2
    x, y = x - middle_x, (y - middle_y)[:, None]
    squared = np.minimum((x / lattice.width_px) ** 2 + (y / lattice.height_px) ** 2, 1.0)
    stretch = 1 + k * squared * (1 + squared)
    sources = np.empty((*lattice.num_nodes, 2), np.float32)
    sources[..., 0] = middle_x + x * stretch
    sources[..., 1] = middle_y + y * stretch
    return sources


def lens_step_px(height_px: int, width_px: int) -> int:
    """The lattice whose straight cells are within 0.05 px of the strongest lens.

    Its second derivative falls with the field's sides: 8 px at 1024, 4 px at 256.
    """
    return max(1, math.isqrt(min(height_px, width_px)) // 4)


def random_displacement(
    lattice: Lattice,
    rms_px: float,
    sigma_px: float,
    noise: Noise,
    rng: np.random.Generator,
) -> Floats:
    """Noise smoothed by a Gaussian of `sigma_px`, with this root mean square along each axis."""
    sigma = sigma_px / lattice.step_px
    more = math.ceil(3 * sigma) + 1  # the blur sees noise beyond the nodes
    down, across = (extent + 2 * more for extent in lattice.num_nodes)
    if noise == "normal":
        drawn = rng.standard_normal((down, across, 2), dtype=np.float32)
    else:
        drawn = (2 * rng.random((down, across, 2), dtype=np.float32) - 1) * np.float32(math.sqrt(3))
    smooth = cv2.GaussianBlur(drawn, (0, 0), sigma)[more:-more, more:-more]
    spread = rms_px * 2 * math.sqrt(math.pi) * sigma  # what the blur took of it, given back
    return lattice.places() + np.float32(spread) * smooth


def displacement_step_px(rms_px: float, sigma_px: float) -> int:
    """The widest lattice whose straight cells are within LATTICE_ERROR_PX of a random displacement.

    Between nodes a distance h apart a curve is h^2 / 8 times its second derivative from straight;
    that of the displacement is sqrt(3) / 2 rms / sigma^2.
    """
    step_px = sigma_px * math.sqrt(8 * LATTICE_ERROR_PX / (math.sqrt(3) / 2 * rms_px))
    return max(1, int(min(step_px, sigma_px / 2)))
