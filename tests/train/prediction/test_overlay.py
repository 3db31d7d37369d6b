"""The overlay of a predicted image: areas and nuclei by class, and the nuclei stay to be seen."""

import cv2
import numpy as np
import pytest

from data_prep.images.class_colours import colour_of, legend
from train.metrics.detection import Nuclei
from train.prediction.overlay import draw_overlay

TISSUE = (200, 120, 160)


def nuclei_at(*centres: tuple[float, float]) -> Nuclei:
    return Nuclei(np.array(centres, float).reshape(-1, 2), np.ones(len(centres), np.float32))


def disc(radius_px: int) -> np.ndarray:
    class_HW = np.zeros((80, 160), np.uint8)
    cv2.circle(class_HW, (40, 40), radius_px, 1, cv2.FILLED)
    return class_HW


@pytest.mark.parametrize(("shrink", "disc_px"), [(1, 20), (3, 7), (10, 2)])
def test_most_of_a_nucleus_stays_to_be_seen(shrink: int, disc_px: int) -> None:
    """Of 20 px in the image, at any scale; of one that is 2 px small its middle."""
    picture = np.full((80, 160, 3), TISSUE, np.uint8)
    is_nucleus_HW = disc(disc_px) > 0
    overlay = draw_overlay(picture, disc(disc_px), [nuclei_at()], ["tumor"], shrink, 20)
    is_tissue_HW = (overlay == TISSUE).all(axis=-1)
    assert is_tissue_HW[is_nucleus_HW].mean() > 0.3
    assert (overlay == colour_of(0)).all(axis=-1).any()
    assert (picture == TISSUE).all(), "the picture itself is changed"


def test_nuclei_are_dots_in_the_colour_of_their_class_where_they_are() -> None:
    """Of an image of which 3 px are one of the picture: the middle of px 120 to 122 is in px 40."""
    picture = np.full((80, 160, 3), TISSUE, np.uint8)
    nuclei = [nuclei_at((121, 121)), nuclei_at((301, 61))]
    nothing = np.zeros((80, 160), np.uint8)
    overlay = draw_overlay(picture, nothing, nuclei, ["tumor", "lumen"], 3, 20)[:80]
    for number, (x, y) in enumerate([(40, 40), (100, 20)]):
        is_dot_HW = (overlay == colour_of(number)).all(axis=-1)
        assert is_dot_HW[y, x]
        assert [axis.mean() for axis in np.nonzero(is_dot_HW)] == [y, x]
        assert is_dot_HW.sum() < 10


def test_many_small_nuclei_do_not_darken_the_picture() -> None:
    """Every 2 px of the picture, each less than a px wide: dots without an edge."""
    picture = np.full((80, 160, 3), TISSUE, np.uint8)
    y, x = np.mgrid[0:80:2, 0:160:2]
    centres = np.stack([x.ravel(), y.ravel()], 1) * 25.0
    nothing = np.zeros((80, 160), np.uint8)
    overlay = draw_overlay(picture, nothing, [nuclei_at(*centres.tolist())], ["tumor"], 25, 20)
    is_tissue_HW = (overlay == TISSUE).all(axis=-1)
    assert is_tissue_HW.mean() > 0.7


def test_classes_have_outlines_of_their_colour_and_a_legend_below() -> None:
    picture = np.full((80, 160, 3), TISSUE, np.uint8)
    class_HW = disc(20)
    class_HW[:, 100:140] = 2
    names = ["tumor", "lumen"]
    overlay = draw_overlay(picture, class_HW, [nuclei_at()] * 2, names, 1, 20)
    assert (overlay[80:] == legend(160, names)).all()
    assert len(overlay) > 80
    for number, left, right in ((0, 0, 80), (1, 90, 160)):
        _, x = np.nonzero((overlay[:80] == colour_of(number)).all(axis=-1))
        assert len(x) > 100
        assert x.min() >= left
        assert x.max() < right
    alone = draw_overlay(picture, disc(20), [nuclei_at()], ["tumor"], 1, 20)
    assert len(alone) == 80
