"""Outlines as arrays of corners: their area and centre, the part in an image, their pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Mask

Ring = npt.NDArray[np.float64]
"""Corners of an outline, (N, 2): x and y in px from the image's corner."""

MOST_TESTS = 200_000_000  # of a corner against a middle, so that no file takes minutes
TESTS_AT_ONCE = 1_000_000
MOST_CROSSINGS = 1_000_000  # of edges and rows at once: each takes some 70 bytes


def signed_area(ring: Ring) -> float:
    """Return the area that a ring encloses, in px; negative if it runs counterclockwise."""
    # relative to a corner, since large coordinates would cancel; the last edge then adds nothing
    x, y = (ring - ring[:1]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def centre_of_gravity(rings: Sequence[Ring]) -> npt.NDArray[np.float64]:
    """Return (2,): the centre of a polygon's signed areas, in px from the image's corner."""
    areas, middles = [], []
    for number, ring in enumerate(rings):
        near, following = ring - ring[0], np.roll(ring - ring[0], -1, axis=0)
        cross = near[:, 0] * following[:, 1] - following[:, 0] * near[:, 1]
        middles.append(ring[0] + ((near + following) * cross[:, None]).sum(0) / (3 * cross.sum()))
        areas.append(abs(cross.sum()) * (1 if number == 0 else -1))
    if sum(areas) <= 0:  # holes larger than the outline: ignore them
        return middles[0]
    return np.average(middles, axis=0, weights=areas)


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
) -> int:
    """Count the areas that hold the middle of another object.

    `areas`: number of an object, its outline and holes; `bounds` (N, 4) and `middles` (N, 2) are
    of all objects. Stops after MOST_TESTS, so of a file that needs more it may count too few.
    """
    by_x = np.argsort(middles[:, 0], kind="stable")
    x, y = middles[by_x].T
    starts = np.searchsorted(x, bounds[:, 0], "left").tolist()
    ends = np.searchsorted(x, bounds[:, 2], "right").tolist()
    num_holding, num_tests = 0, 0
    for number, rings in areas:
        start, end = starts[number], ends[number]
        is_near = (y[start:end] >= bounds[number, 1]) & (y[start:end] <= bounds[number, 3])
        others = by_x[start:end][is_near]
        others = others[others != number]
        num_corners = sum(map(len, rings))
        at_once = max(1, TESTS_AT_ONCE // num_corners)
        for first in range(0, len(others), at_once):
            some = others[first : first + at_once]
            num_tests += num_corners * len(some)
            if num_tests > MOST_TESTS:
                return num_holding
            if are_held(middles[some], rings).any():
                num_holding += 1
                break
    return num_holding


def are_held(points_N2: npt.NDArray[np.float64], rings: Sequence[Ring]) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: which points lie within the rings, by the even-odd rule."""
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    (x, y), (dx, dy) = starts.T, (ends - starts).T
    px, py = points_N2[:, :1], points_N2[:, 1:]
    crosses = (y <= py) != (y + dy <= py)
    with np.errstate(divide="ignore", invalid="ignore"):
        is_right = px < x + (py - y) * dx / dy
    return np.asarray((crosses & is_right).sum(axis=1) % 2 == 1)


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
    turns = np.zeros((len(window_HW), window_HW.shape[1] + 1), np.uint8)
    num_groups = 1 + int((last - first).sum()) // MOST_CROSSINGS
    for edges in np.array_split(np.arange(len(starts)), num_groups):
        counts = (last - first)[edges]
        edge = np.repeat(edges, counts)
        row = np.arange(counts.sum()) + np.repeat(first[edges] + counts - np.cumsum(counts), counts)
        (x, y), (dx, dy) = starts[edge].T, (ends - starts)[edge].T
        crossing = x + (row + 0.5 - y) * dx / dy
        column = np.clip(np.ceil(crossing - 0.5), 0, window_HW.shape[1]).astype(int)
        np.bitwise_xor.at(turns, (row, column), 1)  # enter or leave the area
    is_in_HW = np.bitwise_xor.accumulate(turns[:, :-1], axis=1).astype(bool)
    window_HW[is_in_HW] = value
