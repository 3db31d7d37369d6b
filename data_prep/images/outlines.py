"""Find the outlines of masks: paint them into images, or write them as paths of an SVG."""

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.images.arrays import Image

Bools = npt.NDArray[np.bool_]

GREEN = (0, 158, 115)
"""RGB, from Okabe & Ito's palette for every kind of colour vision."""
TOLERANCE_PX = 0.7
"""How far a path may leave the border, so that it needs fewer corners."""


def find_contours(mask_HW: Bools) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the (N, 2) corners x, y of each border of a mask, holes included, in whole px.

    A contour runs through the outermost pixels that belong to the mask.
    """
    contours, _ = cv2.findContours(mask_HW.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    yield from (np.asarray(contour[:, 0], np.int32) for contour in contours)


def paint_outlines(image_HWC: Image, mask_HW: Bools, width_px: int = 1) -> None:
    """Paint the outlines of a mask in GREEN into an image of the same size, HWC uint8 RGB."""
    smoothing = cv2.LINE_AA if width_px == 1 else cv2.LINE_8
    cv2.drawContours(image_HWC, [*find_contours(mask_HW)], -1, GREEN, width_px, smoothing)


def outline_path(mask_HW: Bools, scale: float) -> str:
    """Return the outlines of a mask as the `d` of an SVG path, in px of the scaled image."""
    paths = []
    for contour in find_contours(mask_HW):
        corners = cv2.approxPolyDP(contour, TOLERANCE_PX, closed=True)[:, 0]
        scaled = ((corners + 0.5) * scale).round(1).tolist()  # through the middles of pixels
        paths.append("M" + "L".join(f"{x:g} {y:g}" for x, y in scaled) + "Z")
    return "".join(paths)
