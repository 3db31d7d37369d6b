"""Masks: filled discs at the annotated points, checked against discs drawn by numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from data_prep.images import masks
from tests.points import as_points


def discs(points: list[tuple[float, float]], radius: int, height: int, width: int) -> np.ndarray:
    """Pixels at most `radius` from (int(x W), int(y H)) of any point."""
    y, x = np.mgrid[:height, :width]
    inside = np.zeros((height, width), bool)
    for px, py in points:
        inside |= (x - int(px * width)) ** 2 + (y - int(py * height)) ** 2 <= radius**2
    return inside


@pytest.mark.parametrize("radius", [1, 3, 8, 20])
def test_a_disc_is_every_pixel_within_the_radius(radius: int) -> None:
    mask = masks.draw_mask(as_points({"tumor": [(0.5, 0.5)]}), {"tumor": 255}, radius, 100, 140)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, discs([(0.5, 0.5)], radius, 100, 140) * 255)


def test_a_radius_of_20_px_alone_is_1257_px() -> None:
    """The number of whole (x, y) with x^2 + y^2 <= 400: OEIS A000328(20)."""
    mask = masks.draw_mask(as_points({"tumor": [(0.5, 0.5)]}), {"tumor": 255}, 20, 100, 100)
    assert np.count_nonzero(mask) == 1257


def test_x_goes_over_the_width_and_y_over_the_height() -> None:
    mask = masks.draw_mask(as_points({"tumor": [(0.75, 0.25)]}), {"tumor": 255}, 1, 40, 200)
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (10, 150)


def test_a_coordinate_is_cut_to_a_whole_pixel_not_rounded() -> None:
    mask = masks.draw_mask(as_points({"tumor": [(0.109, 0.199)]}), {"tumor": 255}, 1, 100, 100)
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (19, 10)


def test_many_discs_overlap_and_are_cut_at_the_border() -> None:
    points = [(x, y) for x, y in np.random.default_rng(0).uniform(0, 1, (60, 2)).tolist()]
    points += [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 1.0)]
    mask = masks.draw_mask(as_points({"tumor": points}), {"tumor": 255}, 20, 300, 400)
    assert np.array_equal(mask, discs(points, 20, 300, 400) * 255)


def test_only_the_classes_asked_for_are_drawn() -> None:
    points = {"tumor": [(0.25, 0.5)], "lumen": [(0.75, 0.5)]}
    mask = masks.draw_mask(as_points(points), {"tumor": 255}, 10, 100, 200)
    assert np.array_equal(mask, discs(points["tumor"], 10, 100, 200) * 255)


@pytest.mark.parametrize("order", [["tumor", "lumen"], ["lumen", "tumor"]])
def test_per_class_labels_follow_the_order_and_later_classes_lie_on_top(order: list[str]) -> None:
    points = {"tumor": [(0.5, 0.5)], "lumen": [(0.55, 0.5)]}  # 10 px apart: they overlap
    values = masks.label_values(order, "per_class")
    mask = masks.draw_mask(as_points(points), values, 10, 100, 200)
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


def test_case_1_01_of_the_sample_has_the_published_number_of_pixels(real_data: Path) -> None:
    annotation = json.loads((real_data / "groundTruth/Case_1-01.json").read_text())
    points = [(point["x"], point["y"]) for point in annotation["tumor"]]
    width, height = Pillow.open(real_data / "images/Case_1-01.tif").size
    mask = masks.draw_mask(as_points({"tumor": points}), {"tumor": 255}, 20, height, width)
    assert np.count_nonzero(mask) == 172_413
    assert np.array_equal(mask > 0, discs(points, 20, 1024, 1360))
