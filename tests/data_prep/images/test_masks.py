"""Masks: filled discs at the annotated points, checked against discs drawn by numpy."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.annotations import brecahad
from data_prep.images import masks
from tests.points import as_points


def discs(points: list[tuple[float, float]], radius: int, height: int, width: int) -> np.ndarray:
    """Pixels at most `radius` from any point."""
    y, x = np.mgrid[:height, :width]
    inside = np.zeros((height, width), bool)
    for px, py in points:
        inside |= (x - px) ** 2 + (y - py) ** 2 <= radius**2
    return inside


def draw(points: list[tuple[float, float]], radius: int, height: int, width: int) -> np.ndarray:
    return masks.paint_mask(as_points({"tumor": points}), {"tumor": 255}, radius, height, width)


@pytest.mark.parametrize("radius", [1, 8])
def test_a_disc_is_every_pixel_within_the_radius(radius: int) -> None:
    mask = draw([(70, 50)], radius, 100, 140)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, discs([(70, 50)], radius, 100, 140) * 255)


def test_a_radius_of_20_px_alone_is_1257_px() -> None:
    """The number of whole (x, y) with x^2 + y^2 <= 400: OEIS A000328(20)."""
    assert np.count_nonzero(draw([(50, 50)], 20, 100, 100)) == 1257


def test_a_disc_is_about_the_pixel_that_a_moved_point_lies_in() -> None:
    """The pixel (10, 19) reaches from 9.5 to 10.5 and from 18.5 to 19.5."""
    for point in ((9.5, 19.49), (10.49, 18.5)):
        assert np.array_equal(draw([point], 1, 100, 100), draw([(10, 19)], 1, 100, 100))


def test_many_discs_overlap_and_are_cut_at_the_border() -> None:
    points = [(x, y) for x, y in np.random.default_rng(0).integers(0, (400, 300), (60, 2)).tolist()]
    points += [(0, 0), (399, 299), (0, 299), (200, 299), (-5, 100), (410, 20)]
    assert np.array_equal(draw(points, 20, 300, 400), discs(points, 20, 300, 400) * 255)


@pytest.mark.parametrize("order", [["tumor", "lumen"], ["lumen", "tumor"]])
def test_per_class_labels_follow_the_order_and_later_classes_lie_on_top(order: list[str]) -> None:
    points = {"tumor": [(100, 50)], "lumen": [(110, 50)], "mitosis": [(30, 30)]}  # not asked for
    values = masks.label_values(order, "per_class")
    mask = masks.paint_mask(as_points(points), values, 10, 100, 200)
    below, above = (discs(points[name], 10, 100, 200) for name in order)
    assert np.array_equal(mask, np.where(above, 2, np.where(below, 1, 0)))
    assert (below & above).any()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("binary", {"lumen": 255, "tumor": 255, "mitosis": 255}),
        ("per_class", {"lumen": 1, "tumor": 2, "mitosis": 3}),
    ],
)
def test_label_values(labels: str, expected: dict[str, int]) -> None:
    values = masks.label_values(["lumen", "tumor", "mitosis"], labels)
    assert values == expected
    assert list(values) == list(expected)


def test_one_channel_of_logits_for_each_distinct_value() -> None:
    assert masks.channel_values([255, 255]) == [255]
    assert masks.channel_values([3, 1, 2, 1]) == [1, 2, 3]
    mask_HW = np.array([[0, 3, 1], [1, 0, 3]], np.uint8)
    assert masks.channels_of(mask_HW, [1, 3]).tolist() == [
        [[False, False, True], [True, False, False]],
        [[False, True, False], [False, False, True]],
    ]


def test_case_1_01_of_the_sample_has_the_published_number_of_pixels(real_data: Path) -> None:
    annotation = json.loads((real_data / "groundTruth/Case_1-01.json").read_text())
    points = [(int(each["x"] * 1360), int(each["y"] * 1024)) for each in annotation["tumor"]]
    content = (real_data / "groundTruth/Case_1-01.json").read_bytes()
    found = brecahad.decode_points(content, 1024, 1360)
    mask = masks.paint_mask(found, {"tumor": 255}, 20, 1024, 1360)
    assert np.count_nonzero(mask) == 172_413
    assert np.array_equal(mask > 0, discs(points, 20, 1024, 1360))
