"""Points class by class: as arrays, which the code takes, and as lists, which a test compares."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.images.arrays import PointsPx


def as_points(listed: Mapping[str, Sequence[Sequence[float]]]) -> PointsPx:
    return {name: np.array(points, float).reshape(-1, 2) for name, points in listed.items()}


def as_lists(points: PointsPx) -> dict[str, list[tuple[float, float]]]:
    for points_N2 in points.values():
        assert points_N2.dtype == np.float64
        assert points_N2.shape == (len(points_N2), 2)
    return {name: [(x, y) for x, y in points_N2.tolist()] for name, points_N2 in points.items()}
