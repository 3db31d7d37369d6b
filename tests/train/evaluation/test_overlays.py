"""Pictures of the report: outlines where the mask's border is, and the right fields."""

import base64
import re

import cv2
import numpy as np
import pytest

from train.evaluation.overlays import Overlay, make_overlay, worst_and_best


def test_a_large_field_is_shown_smaller_with_its_outlines() -> None:
    """1800 px become 900, and a corner at 1000 comes to 500."""
    image_HWC = np.full((1200, 1800, 3), (200, 120, 160), np.uint8)
    truth_HW = np.zeros((1200, 1800), bool)
    truth_HW[600:700, 1000:1200] = True
    truth_CHW = np.stack([np.zeros_like(truth_HW), truth_HW])
    overlay = make_overlay(3, "a", "b", 0.5, image_HWC, truth_CHW, ~truth_CHW)
    assert (overlay.width_px, overlay.height_px) == (900, 600)
    corners = [float(number) for number in re.findall(r"[\d.]+", overlay.truth[1])]
    assert overlay.truth[0] == ""
    assert min(corners[0::2]) == pytest.approx(500, abs=0.5)
    assert max(corners[0::2]) == pytest.approx(600, abs=0.5)
    assert min(corners[1::2]) == pytest.approx(300, abs=0.5)
    jpg = np.frombuffer(base64.b64decode(overlay.jpg_base64), np.uint8)
    picture = cv2.imdecode(jpg, cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (600, 900, 3)
    assert np.abs(picture.astype(int) - (200, 120, 160)).max() <= 4


def with_dice(index: int, dice: float) -> Overlay:
    return Overlay(index, f"field {index}", "case", dice, 1, 1, "", [], [])


def test_the_worst_and_the_best_are_shown() -> None:
    scores = [0.5, 0.9, 0.1, 0.7, 0.3, 0.3]
    overlays = [with_dice(index, dice) for index, dice in enumerate(scores)]
    assert [overlay.index for overlay in worst_and_best(overlays, 2)] == [2, 4, 3, 1]
    assert [overlay.index for overlay in worst_and_best(overlays, 3)] == [2, 4, 5, 0, 3, 1]
    assert worst_and_best(overlays, 0) == []


def test_each_rank_may_keep_its_own_worst_and_best() -> None:
    """Seen one by one on two ranks, as in evaluation: those of all come out."""
    dice = np.random.default_rng(0).permutation(20) / 20
    overlays = [with_dice(index, value) for index, value in enumerate(dice.tolist())]
    kept: list[list[Overlay]] = [[], []]
    for overlay in overlays:
        rank = overlay.index % 2
        kept[rank] = worst_and_best([*kept[rank], overlay], 3)
    assert worst_and_best(kept[0] + kept[1], 3) == worst_and_best(overlays, 3)
