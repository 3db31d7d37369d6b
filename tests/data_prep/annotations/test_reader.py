"""What readers give: points in the picture and beside it, and the middles of areas."""

from data_prep.annotations.reader import inside_only, with_middles
from tests.points import as_lists, as_points


def test_the_edges_are_inside_and_what_lies_further_is_not() -> None:
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    outside = [(-1e-6, 0.5), (0.5, -1e-6), (1.000001, 0.5), (0.5, 1.000001), (-0.1, 1.1)]
    points = as_points({"tumor": [*outside, *corners], "lumen": outside, "mitosis": []})
    assert as_lists(inside_only(points)) == {"tumor": corners, "lumen": [], "mitosis": []}


def test_middles_come_after_the_points_of_their_class() -> None:
    points = as_points({"tumor": [(0.5, 0.25)], "lumen": [], "mitosis": [(0.1, 0.2)]})
    middles = as_points({"tumor": [(0.75, 1.0)], "lumen": [(0.3, 0.4)], "mitosis": []})
    assert as_lists(with_middles(points, middles)) == {
        "tumor": [(0.5, 0.25), (0.75, 1.0)],
        "lumen": [(0.3, 0.4)],
        "mitosis": [(0.1, 0.2)],
    }
    assert as_lists(with_middles(points, None)) == as_lists(points)
