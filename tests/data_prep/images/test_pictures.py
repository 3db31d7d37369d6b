"""Pictures pixel by pixel."""

import numpy as np

from data_prep.images.pictures import (
    FALSE_ALARM,
    HIT,
    MISS,
    outcome_picture,
    outline_picture,
    panel_strip,
)

IMAGE = np.full((1, 4, 3), (100, 200, 50), np.uint8)
TRUTH = np.array([[True, True, False, False]])
PREDICTED = np.array([[True, False, True, False]])


def test_hit_miss_and_false_alarm_are_half_their_colour_half_the_image() -> None:
    """(100, 200, 50) with green (0, 158, 115), orange (230, 159, 0), purple (204, 33, 167)."""
    assert (HIT, MISS, FALSE_ALARM) == ((0, 158, 115), (230, 159, 0), (204, 33, 167))
    picture = outcome_picture(IMAGE, TRUTH, PREDICTED)[0].tolist()
    hit, miss, false_alarm, neither = picture
    assert np.abs(np.subtract(hit, (50, 179, 82.5))).max() <= 0.5
    assert np.abs(np.subtract(miss, (165, 179.5, 25))).max() <= 0.5
    assert np.abs(np.subtract(false_alarm, (152, 116.5, 108.5))).max() <= 0.5
    assert neither == [100, 200, 50]
    assert IMAGE[0, 0].tolist() == [100, 200, 50]  # the image itself is left alone


def test_an_outline_runs_along_the_masks_edge() -> None:
    """Of a 20 px square the edge is drawn, its middle and what is far away are not."""
    image_HWC = np.full((40, 40, 3), 7, np.uint8)
    mask_HW = np.zeros((40, 40), bool)
    mask_HW[10:30, 10:30] = True
    picture = outline_picture(image_HWC, mask_HW)
    drawn_HW = (picture == HIT).all(axis=-1)
    y, x = np.mgrid[:40, :40]
    outside_px = np.maximum(np.abs(x - 19.5), np.abs(y - 19.5)) - 9.5  # 0 on the outermost pixels
    assert drawn_HW[outside_px == 0].all()
    assert not drawn_HW[np.abs(outside_px) > 2].any()
    assert (picture[~drawn_HW] == 7).all()
    assert (image_HWC == 7).all()


def test_a_strip_has_input_truth_and_prediction_side_by_side() -> None:
    image_HWC = np.full((80, 120, 3), (10, 20, 30), np.uint8)
    truth_HW, predicted_HW = np.zeros((2, 80, 120), bool)
    truth_HW[:, :60], predicted_HW[:40] = True, True
    strip = panel_strip(image_HWC, truth_HW, predicted_HW, height_px=40)
    assert (strip.shape, strip.dtype) == ((40, 3 * 60, 3), np.uint8)
    assert (strip[:, :60] == (10, 20, 30)).all()
    assert (strip[:, 60:90] == 255).all()
    assert (strip[:, 90:120] == 0).all()
    assert (strip[:20, 120:] == 255).all()
    assert (strip[20:, 120:] == 0).all()
