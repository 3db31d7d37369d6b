"""A colour for each class, and legends that show it."""

from itertools import combinations

import numpy as np
import pytest

from data_prep.images.class_colours import PALETTE, colour_of, coloured, legend
from data_prep.images.masks import numbers_of

# How a person without red cones sees linear RGB (Viénot, Brettel & Mollon 1999)
PROTAN = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
TISSUE = (200, 120, 160)


def seen(colour: tuple[int, int, int], matrix: np.ndarray) -> np.ndarray:
    return 255 * (matrix @ (np.array(colour) / 255) ** 2.2).clip(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("matrix", [np.eye(3), PROTAN])
def test_the_colours_are_told_apart_and_from_tissue(matrix: np.ndarray) -> None:
    for one, other in combinations([*PALETTE, TISSUE], 2):
        assert np.linalg.norm(seen(one, matrix) - seen(other, matrix)) > 35, (one, other)


def test_more_classes_than_colours_begin_again_darker_and_then_start_over() -> None:
    num = len(PALETTE)
    assert [colour_of(number) for number in range(num)] == list(PALETTE)
    assert colour_of(num) == (144, 137, 40)  # 60% of (240, 228, 66)
    assert len({colour_of(number) for number in range(2 * num)}) == 2 * num
    assert colour_of(2 * num) == colour_of(0)
    assert min(colour_of(254)) >= 0


def test_pixels_have_the_colour_of_their_class_and_a_single_class_is_white() -> None:
    is_class_CHW = np.array([[[1, 0, 0, 1]], [[0, 1, 0, 1]]], bool)
    class_HW = numbers_of(is_class_CHW)
    assert class_HW.tolist() == [[1, 2, 0, 1]]
    first, second, black = [*colour_of(0)], [*colour_of(1)], [0, 0, 0]
    assert coloured(class_HW, 2).tolist() == [[first, second, black, first]]
    assert coloured(numbers_of(is_class_CHW[:1]), 1).tolist() == [
        [[255] * 3, black, black, [255] * 3]
    ]


def test_a_legend_names_each_class_beside_its_colour() -> None:
    strip = legend(400, ["Tumor", "Größe", "淋巴"])
    assert strip.shape[1] == 400
    lefts = []
    for number in range(3):
        y, x = np.nonzero((strip == colour_of(number)).all(axis=-1))
        assert len(x) > 100, "no field of the class's colour"
        assert x.max() - x.min() < 14
        lefts.append(int(x.min()))
        beside = strip[y.min() : y.max(), x.max() + 5 : x.max() + 20]
        assert beside.min() < 128, "nothing is written beside it"
    assert lefts == sorted(lefts)


def test_a_legend_that_is_too_wide_goes_on_in_the_next_row() -> None:
    names = ["immune cells", "plasma cells", "tumor"]
    wide, narrow = legend(600, names), legend(150, names)
    assert narrow.shape[0] == 3 * wide.shape[0]
    for number in range(3):
        assert (narrow == colour_of(number)).all(axis=-1).any()
    assert legend(16, ["x" * 300, "y"]).shape[1] == 16


def test_one_class_needs_no_legend_but_may_have_a_title() -> None:
    assert legend(100, ["tumor"]).shape == (0, 100, 3)
    assert legend(100, ["tumor"], "Case_1-01").min() < 100


def test_names_from_elsewhere_are_drawn_in_a_line() -> None:
    """Of a file whose name is not UTF-8, too."""
    strip = legend(300, ["a\nb", "c\udcff"], "d\udcffe\nf")
    assert strip.shape[0] == 2 * legend(300, ["a", "b"]).shape[0]
