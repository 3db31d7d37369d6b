"""Outlines as arrays of corners: their area and centre, the part in an image, their pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Mask
from data_prep.raw import BadInputError

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2): x and y in px from the image's corner."""

FLAT = 1e-9  # part of its bounds that an outline must enclose; less is an error of rounding
MOST_CROSSINGS = 20_000_000  # of an outline's edges with rows of pixels; nobody draws so many
CORNERS_AT_ONCE = 100_000
LONG_PX = 64  # of a row, that is painted alone

MOST_TESTS = 200_000_000  # of an edge against a middle, so that no file takes minutes
TESTS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Measures:
    """What is measured of N rings at once, in px from the image's corner."""

    areas: npt.NDArray[np.float64]
    """(N,): the areas that they enclose, in square px; negative if counterclockwise."""
    centres: npt.NDArray[np.float64]
    """(N, 2): their centres of gravity; NaN for a ring without area."""
    low: npt.NDArray[np.float64]
    """(N, 2): left and top."""
    high: npt.NDArray[np.float64]
    """(N, 2): right and bottom."""


def measure(rings: Sequence[Ring]) -> Measures:
    """Measure rings; much faster for many at once."""
    if not rings:
        return Measures(np.zeros(0), *(np.zeros((0, 2)) for _ in range(3)))
    corners, lengths = np.concatenate(rings), np.array([*map(len, rings)])
    begins = np.cumsum(lengths) - lengths
    first = corners[begins]
    near = corners - np.repeat(first, lengths, axis=0)  # since large coordinates would cancel
    following = near[next_corners(lengths)]
    cross = near[:, 0] * following[:, 1] - following[:, 0] * near[:, 1]
    sums = np.add.reduceat(cross, begins)
    moments = np.add.reduceat((near + following) * cross[:, None], begins)
    with np.errstate(divide="ignore", invalid="ignore"):
        centres = first + moments / (3 * sums[:, None])
    low, high = np.minimum.reduceat(corners, begins), np.maximum.reduceat(corners, begins)
    return Measures(sums / 2, centres, low, high)


def next_corners(lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return, for each corner of rings that follow each other, the number of the ring's next."""
    ends = np.cumsum(lengths)
    following = np.arange(1, ends[-1] + 1)
    following[ends - 1] = ends - lengths
    return following


def is_closed(ring: Ring) -> bool:
    """Whether a ring's last corner is its first."""
    return len(ring) > 1 and bool((ring[0] == ring[-1]).all())


def canonical(ring: Ring) -> Ring:
    """Return a ring from its leftmost corner on, towards the more leftward of its neighbours."""
    corners = (ring[:-1] if is_closed(ring) else ring) + 0.0  # -0.0 becomes 0.0
    if len(corners) < 3:
        return corners
    order = corners.view(np.complex128)[:, 0]  # is compared by x, then by y
    first = int(order.argmin())
    after, before = order[(first + 1) % len(order)], order[first - 1]
    if (after.real, after.imag) > (before.real, before.imag):
        corners, first = corners[::-1], len(order) - 1 - first
    return np.concatenate([corners[first:], corners[:first]])


def is_flat(ring: Ring) -> bool:
    """Whether a ring encloses no area, but for errors of rounding."""
    if len(ring) < 3:
        return True
    width_px, height_px = np.ptp(ring, axis=0)
    return bool(abs(signed_area(ring)) <= FLAT * width_px * height_px)


def signed_area(ring: Ring) -> float:
    """Return the area that a ring encloses, in px; negative if it runs counterclockwise."""
    # relative to a corner, since large coordinates would cancel; the last edge then adds nothing
    x, y = (ring - ring[:1]).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2


def without_holes(areas: npt.NDArray[np.float64], centres: Ring) -> npt.NDArray[np.float64]:
    """Return (2,): the centre of an outline, which is the first, without its holes."""
    signs = np.array([1, *[-1] * (len(areas) - 1)])
    weights = np.abs(areas) * signs
    if weights.sum() <= 0:  # holes larger than the outline: ignore them
        return centres[0]
    return np.average(centres, axis=0, weights=weights)


def clip(ring: Ring, size: npt.NDArray[np.float64]) -> Ring:
    """Return the part of a ring inside a rectangle from (0, 0) to `size` (Sutherland-Hodgman).

    Parts of an outline that leaves and comes back stay joined along the border, which changes
    neither area nor centre. Empty if all of it is outside.
    """
    for axis in (0, 1):
        ring = beyond_removed(ring, axis, 0.0, -1.0)
        ring = beyond_removed(ring, axis, float(size[axis]), 1.0)
    return ring


def beyond_removed(ring: Ring, axis: int, limit: float, sign: float) -> Ring:
    """Remove what lies beyond one side; `sign`: in which direction of the axis that is."""
    reach = sign * (ring[:, axis] - limit)
    following, next_reach = np.roll(ring, -1, axis=0), np.roll(reach, -1)
    is_in, crosses = reach <= 0, (reach <= 0) != (next_reach <= 0)
    part = np.divide(reach, reach - next_reach, out=np.zeros_like(reach), where=crosses)
    crossing = ring + part[:, None] * (following - ring)
    crossing[:, axis] = limit
    return np.stack([ring, crossing], axis=1)[np.stack([is_in, crosses], axis=1)]


def outside_of(bounds: npt.NDArray[np.float64], width_px: int, height_px: int) -> str:
    """Say on which axis left, top, right and bottom are outside an image."""
    for axis, name, side in ((0, "x", width_px), (1, "y", height_px)):
        low, high = bounds[axis], bounds[axis + 2]
        if low == high and not 0 <= low <= side:
            return f"{name} = {low:g} is outside the image (0 to {side} px)"
        if high <= 0 or low >= side:
            return f"{name} = {low:g} to {high:g} is outside the image (0 to {side} px)"
    return f"is outside the image ({width_px} x {height_px} px)"


def holds_any(
    areas: Sequence[tuple[int, Sequence[Ring]]],
    bounds: npt.NDArray[np.float64],
    middles: npt.NDArray[np.float64],
) -> tuple[int, int]:
    """Count the areas that hold the middle of another object whose bounds are not larger.

    `areas`: number of an object, its outline and holes; `bounds` (N, 4) and `middles` (N, 2) are
    of all objects. Stops after MOST_TESTS; also returns the number of areas left untested.
    """
    by_x = np.argsort(middles[:, 0], kind="stable")
    x, y = middles[by_x].T
    sizes = np.prod(bounds[:, 2:] - bounds[:, :2], axis=1)
    starts = np.searchsorted(x, bounds[:, 0], "left").tolist()
    ends = np.searchsorted(x, bounds[:, 2], "right").tolist()
    num_holding, num_tests = 0, 0
    for index, (number, rings) in enumerate(areas):
        start, end = starts[number], ends[number]
        is_near = (y[start:end] >= bounds[number, 1]) & (y[start:end] <= bounds[number, 3])
        others = by_x[start:end][is_near]
        others = others[(others != number) & (sizes[others] <= sizes[number])]
        if not len(others):
            continue
        num_tests += sum(num_crossings(middles[others], ring) for ring in rings)
        if num_tests > MOST_TESTS:
            return num_holding, len(areas) - index
        outline, *holes = (are_held(middles[others], ring) for ring in rings)
        num_holding += bool((outline & ~np.any(holes, axis=0)).any())
    return num_holding, 0


def rows_met(points_N2: Ring, ring: Ring) -> tuple[Any, Any, Any]:
    """Sort points by y; return their order, and the first and last of them that each edge of a
    ring is beside."""
    by_y = np.argsort(points_N2[:, 1], kind="stable")
    low, high = np.sort([ring[:, 1], np.roll(ring[:, 1], -1)], axis=0)
    first, last = np.searchsorted(points_N2[by_y, 1], [low, high])
    return by_y, first, last


def num_crossings(points_N2: Ring, ring: Ring) -> int:
    """Return how many tests are_held() makes."""
    _, first, last = rows_met(points_N2, ring)
    return int((last - first).sum())


def are_held(points_N2: Ring, ring: Ring) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: which points lie within a ring, by the even-odd rule."""
    by_y, first, last = rows_met(points_N2, ring)
    (x, y), (dx, dy) = ring.T, (np.roll(ring, -1, axis=0) - ring).T
    turns = np.zeros(len(points_N2), np.intp)
    groups = np.cumsum(last - first) // TESTS_AT_ONCE
    for group in np.unique(groups).tolist():
        edges = np.flatnonzero(groups == group)
        edge, number = repeated(edges, first[edges], last[edges])
        point = by_y[number]
        px, py = points_N2[point].T
        is_right = px < x[edge] + (py - y[edge]) * dx[edge] / dy[edge]
        turns += np.bincount(point[is_right], minlength=len(turns))
    return turns % 2 == 1


def repeated(what: Any, first: Any, last: Any) -> tuple[Any, Any]:
    """Return each of `what` once for every number from its first to before its last, and these
    numbers."""
    counts = last - first
    before = np.cumsum(counts) - counts
    return np.repeat(what, counts), np.arange(counts.sum()) + np.repeat(first - before, counts)


def fill(mask_HW: Mask, polygons: Sequence[Sequence[Ring]], value: int) -> None:
    """Write a value to the pixels whose middle is within a polygon's outline, by the even-odd rule,
    and within none of its holes. Raises BadInputError for an outline that takes too long.

    cv2.fillPoly would paint the outline too: half a pixel more all around.
    """
    outlines = [rings[0] for rings in polygons if len(rings) == 1]
    at_once = np.cumsum([*map(len, outlines)]) // CORNERS_AT_ONCE
    for _, group in groupby(zip(at_once, outlines, strict=True), lambda pair: pair[0]):
        fill_outlines(mask_HW, [outline for _, outline in group], value)
    size = np.array(mask_HW.shape[::-1])
    for outline, *holes in (rings for rings in polygons if len(rings) > 1):
        left, top = np.clip(np.floor(outline.min(axis=0)), 0, size).astype(int)
        right, bottom = np.clip(np.ceil(outline.max(axis=0)), 0, size).astype(int)
        own_HW = np.zeros((bottom - top, right - left), np.uint8)
        fill_outlines(own_HW, [outline - (left, top)], 1)
        for hole in holes:
            fill_outlines(own_HW, [hole - (left, top)], 0)
        mask_HW[top:bottom, left:right][own_HW == 1] = value


def fill_outlines(mask_HW: Mask, outlines: Sequence[Ring], value: int) -> None:
    """Write a value to the pixels within outlines without holes."""
    height_px, width_px = mask_HW.shape
    corners, lengths = np.concatenate(outlines), np.array([*map(len, outlines)])
    ends = corners[next_corners(lengths)]
    # an edge crosses the middle line y + 0.5 of these rows
    low, high = np.sort([corners[:, 1], ends[:, 1]], axis=0)
    first, last = (np.clip(np.ceil(at - 0.5), 0, height_px).astype(int) for at in (low, high))
    if (last - first).sum() > MOST_CROSSINGS:
        raise BadInputError(f"outlines cross more than {MOST_CROSSINGS:,} rows: too many to fill")
    edge, row = repeated(np.arange(len(corners)), first, last)
    (x, y), (dx, dy) = corners[edge].T, (ends - corners)[edge].T
    crossing = x + (row + 0.5 - y) * dx / dy
    column = np.clip(np.ceil(crossing - 0.5), 0, width_px).astype(int)
    of_outline = np.repeat(np.arange(len(outlines)), lengths)[edge]
    order = np.lexsort((column, row, of_outline))  # then each two are where a row is entered, left
    row, left, right = row[order[::2]], column[order[::2]], column[order[1::2]]
    is_long = right - left > LONG_PX
    for number in np.flatnonzero(is_long).tolist():
        mask_HW[row[number], left[number] : right[number]] = value
    mask_HW[repeated(row[~is_long], left[~is_long], right[~is_long])] = value
