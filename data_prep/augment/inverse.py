"""Points moved along with pixels: where variants show the points of their field.

A variant's map leads from its places to the field's; here it is turned round, by Newton's method,
for the points of all variants at once: NumPy takes hardly longer for all than for those of one.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.augment.warp import Warp, extent
from data_prep.config import MARGIN_PX

Places = npt.NDArray[np.complex128]
"""(N,): x + iy in px, as warp.py counts them."""
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

SOLVED_PX = 0.01  # a point is found where the map leads this near to it along both axes
MAX_ITERATIONS = 12


def move_points(points: Places, warps: Sequence[Warp]) -> list[tuple[Places, Indices]]:
    """Where each variant shows points in the field, to SOLVED_PX, and which point is where.

    In a mirrored border a point is shown again. Places outside the variant come too, up to
    MARGIN_PX. Of a map that folds over, one place comes for a point that is shown three times.
    """
    if not warps:
        return []
    maps = Maps(warps)
    wanted, map_of, which = with_mirrored(points, warps)
    places, is_found = maps.solve(wanted, map_of, wanted)
    # found far away, where the map folds over, a point may be here as well
    folds = np.array([folds_over(warp) for warp in warps])
    is_lost = ~is_found | (folds[map_of] & ~is_near(places, warps[0]))
    for index in np.unique(map_of[is_lost]):
        lost = np.flatnonzero(is_lost & (map_of == index))
        found, places_found = maps.search(wanted[lost], index)
        places[lost[found]], is_found[lost[found]] = places_found, True
    is_shown = is_found & is_near(places, warps[0])
    shown = [np.flatnonzero(is_shown & (map_of == index)) for index in range(len(warps))]
    return [(places[of_map], which[of_map]) for of_map in shown]


def is_near(places: Places, warp: Warp) -> Flags:
    """Which places lie in the variant or up to MARGIN_PX outside."""
    x, y = places.real, places.imag
    right, bottom = warp.lattice.width_px + MARGIN_PX, warp.lattice.height_px + MARGIN_PX
    return (x > -MARGIN_PX) & (x < right) & (y > -MARGIN_PX) & (y < bottom)


def with_mirrored(points: Places, warps: Sequence[Warp]) -> tuple[Places, Indices, Indices]:
    """What is to be found in the maps, in which of them, and which point it is.

    That is every point in every map or, with a mirrored border, it and its images as far as the
    map reaches.
    """
    if warps[0].border != "mirror":
        map_of, which = np.divmod(np.arange(len(warps) * len(points)), len(points))
        return points[which], map_of, which
    last_x, last_y = warps[0].lattice.width_px - 1, warps[0].lattice.height_px - 1
    extents = np.array([extent(warp.sources_HW2) for warp in warps])
    (left, top), (right, bottom) = extents.transpose(1, 2, 0)[..., None]
    x, of_x = mirrored(points.real, last_x, left.min(), right.max())
    y, of_y = mirrored(points.imag[of_x], last_y, top.min(), bottom.max())
    x = x[of_y]
    is_in_reach = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    map_of, index = np.nonzero(is_in_reach)
    return (x + 1j * y)[index], map_of, of_x[of_y][index]


def mirrored(
    along: npt.NDArray[np.float64], last: int, low: float, high: float
) -> tuple[npt.NDArray[np.float64], Indices]:
    """The images of places along an axis, mirrored at 0 and `last`, from low to high, they
    themselves among them, and of which place each is."""
    if last == 0:  # a line that is its own mirror image
        return along, np.arange(len(along))
    turns = 2 * last * np.arange(low // (2 * last), high // (2 * last) + 2)
    images = np.concatenate([along, -along]) + turns[:, None]
    is_image = (images >= low) & (images <= high)
    is_image[:, len(along) :] &= (along != 0) & (along != last)  # these are their own mirror images
    turn, place = np.nonzero(is_image)
    return images[turn, place], place % len(along)


def folds_over(warp: Warp) -> bool:
    """Whether the map turns a part of the field over."""
    nodes = warp.sources_HW2
    right, down = nodes[:-1, 1:] - nodes[:-1, :-1], nodes[1:, :-1] - nodes[:-1, :-1]
    area = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    return bool(area.min() <= 0 <= area.max())


class Maps:
    """The maps of several variants, so that NumPy may ask all of them at once."""

    def __init__(self, warps: Sequence[Warp]) -> None:
        self.warps = warps
        lattices = [warp.lattice for warp in warps]
        self.step_px = np.array([lattice.step_px for lattice in lattices])
        self.origin_px = np.array([lattice.origin_px for lattice in lattices])
        self.down, self.across = np.array([lattice.num_nodes for lattice in lattices]).T
        self.nodes = np.concatenate([warp.sources_HW2.reshape(-1, 2) for warp in warps])
        self.first_node = np.cumsum(self.down * self.across) - self.down * self.across

    def at(self, places: Places, map_of: Indices) -> tuple[Places, Places, Places]:
        """The sources of places, and how they change along x and along y."""
        step, origin, across = self.step_px[map_of], self.origin_px[map_of], self.across[map_of]
        x, y = (places.real - origin) / step, (places.imag - origin) / step
        column = np.minimum(np.maximum(x, 0), across - 2).astype(np.intp)  # cut: at or before
        row = np.minimum(np.maximum(y, 0), self.down[map_of] - 2).astype(np.intp)
        right, below = x - column, y - row
        corner = self.first_node[map_of] + row * across + column
        nodes = self.nodes.view(np.complex64)[:, 0]
        first, second, third, fourth = (
            nodes[corner + further].astype(np.complex128) for further in (0, 1, across, across + 1)
        )
        to_right, down_left = second - first, third - first
        twist = fourth - third - to_right
        down_here = down_left + right * twist
        sources = first + right * to_right + below * down_here
        return sources, (to_right + below * twist) / step, down_here / step

    def solve(
        self, points: Places, map_of: Indices, start: Places, longest_px: float = math.inf
    ) -> tuple[Places, Flags]:
        """Newton's method: the places that the maps lead from to the points, and which it found.

        No step is longer than `longest_px` along an axis.
        """
        places, is_found = start.copy(), np.zeros(len(start), bool)
        at = np.arange(len(start))
        for _ in range(MAX_ITERATIONS):
            sources, along_x, along_y = self.at(places[at], map_of[at])
            missing = points[at] - sources
            found = (np.abs(missing.real) < SOLVED_PX) & (np.abs(missing.imag) < SOLVED_PX)
            is_found[at[found]] = True
            if found.all():
                break
            at, along_x, along_y = at[~found], along_x[~found], along_y[~found]
            missing = missing[~found]
            area = cross(along_x, along_y)
            area[np.abs(area) < 1e-3] = 1.0  # flat: some step, to get away
            step_x = np.clip(cross(missing, along_y) / area, -longest_px, longest_px)
            step_y = np.clip(cross(along_x, missing) / area, -longest_px, longest_px)
            places[at] += step_x + 1j * step_y
        return places, is_found

    def search(self, points: Places, index: int) -> tuple[Indices, Places]:
        """For points that are hidden in a map's folds: which of them it shows, and a place of each.

        From every cell of the lattice whose corners' sources lie about the point.
        """
        cells = [*cells_about(points, self.warps[index])]
        point_of = np.repeat(np.arange(len(points)), [len(found) for found in cells])
        row, column = np.concatenate([np.zeros((0, 2)), *cells]).T
        step_px, origin_px = self.step_px[index], self.origin_px[index]
        start = origin_px + step_px * (column + 0.5) + 1j * (origin_px + step_px * (row + 0.5))
        map_of = np.full(len(start), index)
        places, is_found = self.solve(points[point_of], map_of, start, step_px / 2)
        found, first = np.unique(point_of[is_found], return_index=True)
        return found, places[is_found][first]


def cells_about(points: Places, warp: Warp) -> Iterator[Indices]:
    """For each point the cells, (row, column) of the node before each, whose sources lie about it.

    Only those are looked at from which some shift of the map could lead to the point.
    """
    lattice, corners = warp.lattice, np.ones((2, 2), np.uint8)  # right of each node and below it
    (left, top), (right, bottom) = (
        [of(sources, corners, anchor=(0, 0))[:-1, :-1] for sources in cv2.split(warp.sources_HW2)]
        for of in (cv2.erode, cv2.dilate)
    )
    least, largest = extent(warp.sources_HW2 - lattice.places())
    for point in points.view(float).reshape(-1, 2).astype(np.float32):
        first = np.floor((point - largest - lattice.origin_px) / lattice.step_px) - 1
        last = np.ceil((point - least - lattice.origin_px) / lattice.step_px) + 1
        (x, y), (column, row) = point, np.maximum(first, 0).astype(int)
        part = np.s_[row : max(int(last[1]), 0), column : max(int(last[0]), 0)]
        is_about = (left[part] <= x) & (x <= right[part]) & (top[part] <= y) & (y <= bottom[part])
        yield np.argwhere(is_about) + np.array([row, column])


def cross(one: Places, other: Places) -> npt.NDArray[np.float64]:
    """The area that two steps span, positive where the other is on the right, y pointing down."""
    return one.real * other.imag - one.imag * other.real
