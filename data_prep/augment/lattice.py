"""A map between two pictures of one size, known at the nodes of a coarse lattice.

Positions are (x, y) in px from the centre of the first pixel. Between nodes the map is bilinear.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree

from data_prep.config import MARGIN_PX

Positions = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

MAX_ITERATIONS, SOLVED_PX, MIN_AREA = 10, 0.1, 0.05  # of Newton's method


@dataclass(frozen=True)
class Lattice:
    """Nodes at the centres of cells of step_px, over a picture and MARGIN_PX around it."""

    height_px: int
    width_px: int
    step_px: int

    @property
    def beyond(self) -> int:
        """Cells before the picture, and as many behind it, along each axis."""
        return math.ceil(MARGIN_PX / self.step_px) + 1

    def nodes(self) -> Positions:
        """KL2: the position of each node."""
        first, step = (0.5 - self.beyond) * self.step_px - 0.5, self.step_px
        down, across = (
            math.ceil(side / step) + 2 * self.beyond for side in (self.height_px, self.width_px)
        )
        nodes_KL2 = np.empty((down, across, 2))
        nodes_KL2[..., 0] = first + step * np.arange(across)
        nodes_KL2[..., 1] = first + step * np.arange(down)[:, None]
        return nodes_KL2


class LatticeMap:
    """For each position of a variant, the position in the field that is seen there."""

    def __init__(self, lattice: Lattice, displacement_KL2: Floats) -> None:
        """`displacement_KL2`: how far from each node its pixel is fetched, in px."""
        self.lattice, self.displacement_KL2 = lattice, displacement_KL2
        self.reach_px = float(np.abs(displacement_KL2).max())

    def at_pixels(self) -> Floats:
        """HW2: the map at every pixel, as cv2.remap takes it."""
        lattice, step = self.lattice, self.lattice.step_px
        near = slice(lattice.beyond - 1, 1 - lattice.beyond)  # one cell around the picture stays
        sources_KL2 = (lattice.nodes() + self.displacement_KL2)[near, near].astype(np.float32)
        enlarged = cv2.resize(sources_KL2, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
        return enlarged[step : step + lattice.height_px, step : step + lattice.width_px]

    def at(self, positions_N2: Positions) -> Positions:
        """(N, 2): the map at some positions."""
        step, beyond = self.lattice.step_px, self.lattice.beyond
        y_and_x = ((positions_N2 + 0.5) / step - 0.5 + beyond).T[::-1]
        moved = [
            map_coordinates(along_KL, y_and_x, np.float64, order=1, mode="nearest")
            for along_KL in np.moveaxis(self.displacement_KL2, -1, 0)
        ]
        return positions_N2 + np.stack(moved, axis=1)

    def inverse(self, sources_N2: Positions) -> tuple[Positions, Flags]:
        """Return where positions of the field are seen, to SOLVED_PX, and which were found, (N,).

        Where the map folds over, a position may be seen several times; one of these is returned. In
        strong folds a few are not found.
        """
        seen_N2, is_found = self._solve(sources_N2, sources_N2, self.reach_px)
        if not is_found.all():  # search again, from the node that is fetched from nearby
            nodes_N2 = self.lattice.nodes().reshape(-1, 2)
            tree = KDTree(nodes_N2 + self.displacement_KL2.reshape(-1, 2))
            _, nearest = tree.query(sources_N2[~is_found])
            seen_N2[~is_found], is_found[~is_found] = self._solve(
                sources_N2[~is_found], nodes_N2[nearest], self.lattice.step_px
            )
        return seen_N2, is_found

    def _solve(
        self, sources_N2: Positions, start_N2: Positions, longest_step_px: float
    ) -> tuple[Positions, Flags]:
        """Newton's method; the derivatives are differences over one px."""
        seen_N2 = start_N2.copy()
        for _ in range(MAX_ITERATIONS):
            here_N2 = self.at(seen_N2)
            missing_N2 = sources_N2 - here_N2
            if np.abs(missing_N2).max(initial=0) < SOLVED_PX:
                break
            along_x, along_y = (self.at(seen_N2 + unit) - here_N2 for unit in np.eye(2))
            area = cross(along_x, along_y)
            area[np.abs(area) < MIN_AREA] = MIN_AREA  # flat: some step, to get away
            step = np.stack([cross(missing_N2, along_y), cross(along_x, missing_N2)], axis=1)
            seen_N2 += np.clip(step / area[:, None], -longest_step_px, longest_step_px)
        return seen_N2, np.abs(sources_N2 - self.at(seen_N2)).max(axis=1) < SOLVED_PX


def cross(one_N2: Positions, other_N2: Positions) -> Positions:
    """(N,): the signed area between two vectors."""
    return one_N2[:, 0] * other_N2[:, 1] - one_N2[:, 1] * other_N2[:, 0]
