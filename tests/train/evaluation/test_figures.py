"""Figures that are files one can open."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from data_prep.images.class_colours import colour_of, coloured
from train.evaluation.figures import (
    FALSE_ALARM,
    HIT,
    MISS,
    WRONG_CLASS,
    learning_curves,
    outcome_picture,
    precision_recall,
    save_learning_curves,
    save_outcome,
    save_panels,
    svg_uri,
)

FIELD = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SOME = FIELD[..., 0] > 128
METRICS = [
    {"step": step, "val/loss": 4 / step, "val/dice": None, "val/iou": 0.4, "val/accuracy": 0.9}
    for step in (4, 8, 12)
]
TRAINING = [{"step": step, "train/loss": 1 / step} for step in range(1, 13)]


def panels(path: Path, truth_HW: np.ndarray = SOME) -> None:
    truth_HW, predicted_HW = (mask.astype(np.uint8) for mask in (truth_HW, ~SOME))
    save_panels(path, "a field", FIELD, truth_HW, predicted_HW, ["tumor"])


def outcome(path: Path) -> None:
    save_outcome(path, "a field", FIELD, SOME.astype(np.uint8), (~SOME).astype(np.uint8), 1)


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
    """(100, 200, 50) with green (0, 158, 115), yellow (240, 228, 66), sky (86, 180, 233)."""
    assert (HIT, MISS, FALSE_ALARM) == ((0, 158, 115), (240, 228, 66), (86, 180, 233))
    classes = TRUTH.astype(np.uint8), PREDICTED.astype(np.uint8)
    picture = outcome_picture(IMAGE, *classes)[0].tolist()
    hit, miss, false_alarm, neither = picture
    assert np.abs(np.subtract(hit, (50, 179, 82.5))).max() <= 0.5
    assert np.abs(np.subtract(miss, (170, 214, 58))).max() <= 0.5
    assert np.abs(np.subtract(false_alarm, (93, 190, 141.5))).max() <= 0.5
    assert neither == [100, 200, 50]
    assert IMAGE[0, 0].tolist() == [100, 200, 50]  # the image itself is left alone


def test_two_classes_taken_for_one_another_have_the_wrong_class_and_are_no_hit() -> None:
    """Exactly where truth and prediction differ; with a Dice of 0 there is no hit at all."""
    rng = np.random.default_rng(0)
    class_HW = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    image_HWC = np.full((20, 30, 3), 100, np.uint8)
    picture = outcome_picture(image_HWC, class_HW, (3 - class_HW) % 3)
    wrong = np.round(0.5 * np.array(WRONG_CLASS) + 50)
    assert (picture[class_HW > 0] == wrong).all()
    assert (picture[class_HW == 0] == 100).all()


@pytest.mark.parametrize(
    ("truth", "predicted", "colour"),
    [
        (1, 1, HIT),
        (2, 2, HIT),
        (1, 2, WRONG_CLASS),
        (2, 1, WRONG_CLASS),
        (1, 0, MISS),
        (0, 2, FALSE_ALARM),
        (0, 0, None),
    ],
)
def test_a_pixel_is_a_hit_only_if_its_class_is_right(
    truth: int, predicted: int, colour: tuple[int, int, int] | None
) -> None:
    classes = [np.full((1, 1), number, np.uint8) for number in (truth, predicted)]
    pixel = outcome_picture(np.full((1, 1, 3), 100, np.uint8), *classes)[0, 0]
    assert pixel.tolist() == [round(0.5 * value + 50) for value in colour or (100, 100, 100)]


def shown(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_panels_show_each_class_in_its_colour_with_a_legend(tmp_path: Path) -> None:
    """Truth is all of the first class, the prediction all of the second; both are in the legend."""
    first = np.full((48, 64), 1, np.uint8)
    grey = np.full((48, 64, 3), 128, np.uint8)
    save_panels(tmp_path / "a.png", "a", grey, first, first + 1, ["tumor", "lumen"])
    picture = shown(tmp_path / "a.png")
    _, x = np.nonzero((picture[100:300] == colour_of(0)).all(axis=-1))
    assert x.min() > 500
    assert x.max() < 1000
    _, x = np.nonzero((picture[100:300] == colour_of(1)).all(axis=-1))
    assert x.min() > 1000
    below = picture[-40:]
    for number in (0, 1):
        assert (below == colour_of(number)).all(axis=-1).sum() > 50
    save_panels(tmp_path / "b.png", "a", grey, first, first, ["tumor"])
    assert (shown(tmp_path / "b.png")[200, 600:900] == 255).all(), "one class is white"


def test_the_legend_of_an_outcome_names_the_wrong_class_where_there_are_classes(
    tmp_path: Path,
) -> None:
    """At full strength the colour occurs in the legend only."""
    first = SOME.astype(np.uint8)
    save_outcome(tmp_path / "two.png", "a field", FIELD, first + 1, 2 - first, 2)
    save_outcome(tmp_path / "one.png", "a field", FIELD, first, 1 - first, 1)
    for name, is_named in (("two", True), ("one", False)):
        legend = shown(tmp_path / f"{name}.png")[-60:]
        assert (legend == WRONG_CLASS).all(axis=-1).any() == is_named
        assert (legend == MISS).all(axis=-1).any()


def test_names_are_texts_whatever_their_characters(tmp_path: Path) -> None:
    """In matplotlib a $ begins a formula, and a label with _ is left out of a legend."""
    names = ["_tumor", "$\\frac{$ a$", "c\nd"]
    class_HW = np.zeros((48, 64), np.uint8)
    save_panels(tmp_path / "a.png", "Case_1 $x^{$", FIELD, class_HW, class_HW, names)
    below = shown(tmp_path / "a.png")[-40:]
    for number in range(3):
        assert (below == colour_of(number)).all(axis=-1).sum() > 50


def drawn(figure: Figure) -> dict[str, dict[str, list[list[float]]]]:
    """Title of each panel -> label of each line -> its points."""
    return {
        axes.get_title(): {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
        for axes in figure.axes
    }


def test_learning_curves_show_what_the_lines_hold_and_the_marks_within_them() -> None:
    """Dice, of which nothing is known, is left out, and so is a restart that is yet to come."""
    figure = learning_curves([*TRAINING, *METRICS], restart_steps=[4, 13], evaluated_step=8)
    marks = {"restart": [[4, 0], [4, 1]], "evaluated checkpoint": [[8, 0], [8, 1]]}
    assert drawn(figure) == {
        "training loss": {"as minimised": [[n, 1 / n] for n in range(1, 13)], **marks},
        "validation loss": {"cross-entropy (nats)": [[4, 1], [8, 0.5], [12, 4 / 12]], **marks},
        "validation scores": {
            "IoU": [[4, 0.4], [8, 0.4], [12, 0.4]],
            "accuracy": [[4, 0.9], [8, 0.9], [12, 0.9]],
            **marks,
        },
    }
    assert drawn(learning_curves(TRAINING)).keys() == {"training loss"}
    assert drawn(learning_curves([])) == {}


def test_thresholds_that_find_nothing_are_not_drawn() -> None:
    """Above them precision is 0 / 0, which the curve would show as a fall to the corner."""
    curve = {"threshold": [0.1, 0.5, 0.9], "precision": [0.4, 0.8, 0], "recall": [1, 0.7, 0]}
    figure = precision_recall({"threshold": 0.5, "precision": 0.8, "recall": 0.7, "curve": curve})
    (line, dot) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.4], [0.7, 0.8]]
    assert dot.get_xydata().tolist() == [[0.7, 0.8]]
    assert dot.get_label() == "threshold 0.5"


def test_a_figure_in_a_page_is_the_same_each_time_and_asks_for_nothing() -> None:
    kind, _, content = svg_uri(learning_curves(METRICS)).partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert svg_uri(learning_curves(METRICS)).endswith(content)
    svg = base64.b64decode(content).decode()
    assert ">validation loss</text>" in svg
    assert set(re.findall(r'href="(.)', svg)) == {"#"}


def test_an_ignored_pixel_is_grey_whatever_is_predicted() -> None:
    truth_HW, predicted_HW = np.array([[254, 254, 1]], np.uint8), np.array([[0, 1, 1]], np.uint8)
    field = np.full((1, 3, 3), 100, np.uint8)
    picture = outcome_picture(field, truth_HW, predicted_HW)
    grey, hit = [114] * 3, (50 + 0.5 * np.array(HIT)).round().tolist()
    assert picture.tolist() == [[grey, grey, hit]]
    assert coloured(truth_HW, 3).tolist() == [[[128] * 3] * 2 + [list(colour_of(0))]]
