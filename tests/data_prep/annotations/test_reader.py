"""What readers give: points, and the middles of areas."""

from data_prep.annotations.reader import with_middles
from tests.points import as_lists, as_points


def test_middles_come_after_the_points_of_their_class() -> None:
    points = as_points({"tumor": [(5, 2)], "lumen": [], "mitosis": [(1, 2)]})
    middles = as_points({"tumor": [(7, 10)], "lumen": [(3, 4)], "mitosis": []})
    assert as_lists(with_middles(points, middles)) == {
        "tumor": [(5, 2), (7, 10)],
        "lumen": [(3, 4)],
        "mitosis": [(1, 2)],
    }
    assert as_lists(with_middles(points, None)) == as_lists(points)
