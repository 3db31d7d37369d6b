"""Outlines where the mask's border is, in pixels and in the corners of a path."""

import re

import cv2
import numpy as np

from data_prep.images.outlines import GREEN, outline_path, paint_outlines


def test_an_outline_runs_along_the_masks_edge() -> None:
    """Of a 20 px square the edge is drawn, its middle and what is far away are not."""
    image_HWC = np.full((40, 40, 3), 7, np.uint8)
    mask_HW = np.zeros((40, 40), bool)
    mask_HW[10:30, 10:30] = True
    picture = image_HWC.copy()
    paint_outlines(picture, mask_HW, 3)
    drawn_HW = (picture == GREEN).all(axis=-1)
    y, x = np.mgrid[:40, :40]
    outside_px = np.maximum(np.abs(x - 19.5), np.abs(y - 19.5)) - 9.5  # 0 on the outermost pixels
    assert drawn_HW[outside_px == 0].all()
    assert not drawn_HW[np.abs(outside_px) > 2].any()
    assert (picture[~drawn_HW] == 7).all()


def filled(path: str, height_px: int, width_px: int) -> np.ndarray:
    """The region inside an outline."""
    mask_HW = np.zeros((height_px, width_px), np.uint8)
    for part in path.split("M")[1:]:
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", part)]
        corners = np.array(numbers).reshape(-1, 2) - 0.5
        cv2.fillPoly(mask_HW, [np.round(corners).astype(np.int32)], 1)
    return mask_HW.astype(bool)


def test_outlines_lie_on_the_masks_border() -> None:
    mask_HW = np.zeros((200, 300), np.uint8)
    cv2.circle(mask_HW, (80, 90), 30, 1, cv2.FILLED)
    cv2.rectangle(mask_HW, (200, 20), (299, 70), 1, cv2.FILLED)
    path = outline_path(mask_HW > 0, 1.0)
    assert path.count("M") == path.count("Z") == 2
    differing = filled(path, 200, 300) != (mask_HW > 0)
    assert differing.mean() < 0.002
    assert outline_path(np.zeros((9, 9), bool), 1.0) == ""
