"""Types that modules exchange: images, masks, points in px, and boxes of an image."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""RGB image, HWC uint8."""
Mask = npt.NDArray[np.uint8]
"""Label of every pixel, HW uint8; 0 is background."""
PointsN2 = npt.NDArray[np.float64]
"""Points, (N, 2) float64: x and y in px; the centre of the first pixel is (0, 0).

Annotated points are at the centre of their pixel: whole numbers. Points that a variant moved or a
network found may lie between centres.
"""
PointsPx = dict[str, PointsN2]
"""Class name -> its points."""


@dataclass(frozen=True)
class Box:
    """A part of an image, in px."""

    x: int
    y: int
    width: int
    height: int
