"""Dice against discs of several radii, by formulas and by the masks that preparation draws."""

import math

import numpy as np
import pytest

from data_prep.images.masks import paint_mask
from train.metrics.sensitivity import counts_by_radius, dice_by_radius, paint_discs, radii_around

NOWHERE = np.zeros((0, 2))


@pytest.mark.parametrize(
    ("radius_px", "radii"), [(20, [10, 15, 20, 25, 30]), (8, [4, 6, 8, 10, 12]), (1, [1, 2])]
)
def test_radii_lie_around_the_one_that_was_chosen(radius_px: int, radii: list[int]) -> None:
    assert radii_around(radius_px) == radii


def test_discs_are_those_of_the_prepared_masks() -> None:
    """Also where they overlap, the later class over the earlier, and at the border."""
    rng = np.random.default_rng(0)
    points = {name: rng.uniform(0, (90, 60), (6, 2)).round() for name in ("tumor", "mitosis")}
    mask_HW = paint_mask(points, {"tumor": 1, "mitosis": 2}, 9, 60, 90)
    discs_CHW = paint_discs([*points.values()], 9, 60, 90)
    assert np.array_equal(discs_CHW[0], mask_HW == 1)
    assert np.array_equal(discs_CHW[1], mask_HW == 2)


def test_discs_found_at_their_size_lose_dice_by_the_ratio_of_areas() -> None:
    """Of two discs about one centre, r within R: Dice = 2 r^2 / (r^2 + R^2)."""
    points = [np.array([[60.0, 50.0], [150.0, 120.0]])]
    predicted_CHW = paint_discs(points, 20, 200, 220)
    radii = radii_around(20)
    counts = counts_by_radius(predicted_CHW, np.ones((200, 220), bool), points, radii)
    assert counts.shape == (5, 1, 4)
    assert (counts.sum(axis=-1) == 200 * 220).all()
    by_radius = {row["radius_px"]: row["dice"] for row in dice_by_radius([counts], radii)}
    assert by_radius[20] == 1
    for radius in (10, 15, 25, 30):
        small, large = sorted([radius**2, 20**2])
        assert by_radius[radius] == pytest.approx(2 * small / (small + large), abs=0.01)


def test_fields_are_pooled_before_anything_is_divided() -> None:
    """One disc found, two missed in another field: Dice 2 / (2 + 2) of the pixels, not the mean."""
    one, two = np.array([[30.0, 30.0]]), np.array([[30.0, 30.0], [80.0, 80.0]])
    valid_HW = np.ones((120, 120), bool)
    found = counts_by_radius(paint_discs([one], 8, 120, 120), valid_HW, [one], [8])
    missed = counts_by_radius(np.zeros((1, 120, 120), bool), valid_HW, [two], [8])
    (row,) = dice_by_radius([found, missed], [8])
    assert math.isclose(row["dice"], 0.5)


def test_a_channel_without_points_has_no_truth() -> None:
    counts = counts_by_radius(
        np.ones((2, 10, 10), bool), np.ones((10, 10), bool), [NOWHERE] * 2, [3]
    )
    assert counts[0].tolist() == [[0, 100, 0, 0]] * 2
