"""Figures that are files one can open."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.evaluation.figures import (
    FALSE_ALARM,
    HIT,
    MISS,
    outcome_picture,
    save_learning_curves,
    save_outcome,
    save_panels,
)

FIELD = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SOME = FIELD[..., 0] > 128
METRICS = [
    {"epoch": epoch, "val/loss": 1 / epoch, "val/dice": 0.5, "val/iou": 0.4, "val/accuracy": 0.9}
    for epoch in (1, 2, 3)
]


def panels(path: Path, truth_HW: np.ndarray = SOME) -> None:
    save_panels(path, "a field", FIELD, truth_HW, ~SOME)


def outcome(path: Path) -> None:
    save_outcome(path, "a field", FIELD, SOME, ~SOME)


def curves(path: Path) -> None:
    save_learning_curves(path, METRICS)


@pytest.mark.parametrize("draw", [panels, outcome, curves])
def test_a_figure_is_a_png_that_fits_a_page_and_the_same_each_time(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert "Software" not in picture.info  # a version would make each release another file
        width_px, height_px = picture.size
        assert 600 <= width_px <= 2000
        assert 300 <= height_px <= 1000
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn


@pytest.mark.parametrize(("truth", "grey"), [(False, 0), (True, 255)])
def test_a_mask_of_nothing_is_black_and_one_of_all_is_white(
    truth: bool, grey: int, tmp_path: Path
) -> None:
    panels(tmp_path / "a.png", np.full(SOME.shape, truth))
    with Image.open(tmp_path / "a.png") as picture:
        middle = np.asarray(picture.convert("RGB"))[200:300, 650:850]
    assert (middle == grey).all()


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
