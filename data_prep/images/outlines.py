"""Find the outlines of masks: paint them into images, or write them as SVG paths. Paint dots."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Image, Mask, PointsN2
from data_prep.images.class_colours import HALO, Colour, colour_of

Bools = npt.NDArray[np.bool_]

TOLERANCE_PX = 0.7
"""How far a path may leave the border, so that it needs fewer corners."""


def find_contours(mask_HW: Bools) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the (N, 2) corners x, y of each border of a mask, holes included, in whole px.

    A contour runs through the outermost pixels that belong to the mask.
    """
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    yield from (np.asarray(contour[:, 0], np.int32) for contour in contours)


def paint_outlines(
    image_HWC: Image, class_HW: Mask, reach_px: int = 0, has_halo: bool = True
) -> None:
    """Paint the outlines of every class in its colour into an image of the same size, HWC uint8.

    `class_HW` is 0, or 1 for the first class and so on. Lines reach `reach_px` to either side of a
    class's outermost pixels, and a dark halo 1 px farther, which sets them off. All halos come
    first, so that none covers the line of another class.
    """
    numbers = np.flatnonzero(np.bincount(class_HW.ravel()))
    contours = {n: [*find_contours(class_HW == n)] for n in numbers.tolist() if n}
    if has_halo:
        for lines in contours.values():
            cv2.drawContours(image_HWC, lines, -1, HALO, thickness(reach_px + 1))
    for number, lines in contours.items():
        cv2.drawContours(image_HWC, lines, -1, colour_of(number - 1), thickness(reach_px))


def thickness(reach_px: int) -> int:
    """Return what OpenCV calls the thickness of a line that is 2 reach_px + 1 wide."""
    return 2 * reach_px or 1


def paint_dots(
    image_HWC: Image, centres_N2: PointsN2, radius_px: int, colour: Colour, has_halo: bool = True
) -> None:
    """Paint a dot at each point, in px of the image, HWC uint8; with a dark edge that sets it
    off."""
    for x, y in np.floor(centres_N2 + 0.5).astype(int).tolist():
        if has_halo:
            cv2.circle(image_HWC, (x, y), radius_px + 1, HALO, cv2.FILLED)
        cv2.circle(image_HWC, (x, y), radius_px, colour, cv2.FILLED)


def outline_path(mask_HW: Bools, scale: float) -> str:
    """Return the outlines of a mask as the `d` of an SVG path, in px of the scaled image."""
    paths = []
    for contour in find_contours(mask_HW):
        corners = cv2.approxPolyDP(contour, TOLERANCE_PX, closed=True)[:, 0]
        scaled = ((corners + 0.5) * scale).round(1).tolist()  # through the middles of pixels
        paths.append("M" + "L".join(f"{x:g} {y:g}" for x, y in scaled) + "Z")
    return "".join(paths)
