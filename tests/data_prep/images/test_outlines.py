"""Outlines where the mask's border is, in pixels and in the corners of a path."""

import re

import cv2
import numpy as np

from data_prep.images.class_colours import HALO, colour_of
from data_prep.images.outlines import outline_path, paint_dots, paint_outlines

Y, X = np.mgrid[:40, :40]
CORNERS = (np.abs(Y - 19.5) > 6) & (np.abs(X - 19.5) > 6)
"""Of the picture with the square from 10 to 30: lines are round there."""


def outside_px(left: int, right: int) -> np.ndarray:
    """Distance from a square of the 40 px picture: 0 on its outermost pixels."""
    middle, half = (left + right - 1) / 2, (right - left - 1) / 2
    return np.maximum(np.abs(X - middle), np.abs(Y - middle)) - half


def test_an_outline_runs_along_the_masks_edge() -> None:
    """Of a 20 px square the edge is drawn, its middle and what is far away are not."""
    picture = np.full((40, 40, 3), 7, np.uint8)
    class_HW = np.zeros((40, 40), np.uint8)
    class_HW[10:30, 10:30] = 1
    paint_outlines(picture, class_HW, 2, has_halo=False)
    drawn_HW = (picture == colour_of(0)).all(axis=-1)
    expected_HW = np.abs(outside_px(10, 30)) <= 2
    assert np.array_equal(drawn_HW | CORNERS, expected_HW | CORNERS)
    assert (picture[~drawn_HW] == 7).all()


def test_each_class_has_its_colour_and_a_dark_edge_that_covers_no_other_class() -> None:
    """Two squares side by side: both lines are whole, and dark runs along them."""
    picture = np.full((40, 40, 3), 200, np.uint8)
    class_HW = np.zeros((40, 40), np.uint8)
    class_HW[10:30, 10:20], class_HW[10:30, 20:30] = 2, 3
    paint_outlines(picture, class_HW)
    edge_HW = outside_px(10, 30) == 0
    left_HW = np.arange(40) < 20
    for half_HW, number in ((left_HW, 1), (~left_HW, 2)):
        assert (picture[edge_HW & half_HW] == colour_of(number)).all()
    assert (picture[10:30, 19] == colour_of(1)).all()
    assert (picture[10:30, 20] == colour_of(2)).all()
    assert (picture[(outside_px(10, 30) == 1) & ~CORNERS] == HALO).all()
    assert (picture[outside_px(10, 30) == 2] == 200).all()
    assert (picture[14:26, 14:16] == 200).all()


def test_a_dot_has_its_colour_in_the_middle_and_a_dark_edge() -> None:
    picture = np.full((20, 20, 3), 200, np.uint8)
    paint_dots(picture, np.array([[6.4, 11.0]]), 1, colour_of(3))
    assert picture[11, 6].tolist() == [*colour_of(3)]
    assert picture[11, 8].tolist() == [*HALO]
    assert picture[11, 9].tolist() == [200] * 3


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
